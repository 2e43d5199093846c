"""The HTTP side: resources, join requests, credentials in a request, files for browsers."""
