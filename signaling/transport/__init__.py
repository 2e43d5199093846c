"""Transports of bytes: a reactor with less overhead, and what is used of Twisted's and Autobahn's private names."""
