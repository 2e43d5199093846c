{{- define "signaling.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- /* At most 55 characters, so that a suffix such as -metrics still fits. */}}
{{- define "signaling.fullname" -}}
{{- $name := include "signaling.name" . }}
{{- $made := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- default $made .Values.fullnameOverride | trunc 55 | trimSuffix "-" }}
{{- end }}

{{- define "signaling.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/name: {{ include "signaling.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- /* The component keeps the pod of "helm test" out of the Service. */}}
{{- define "signaling.selectorLabels" -}}
app.kubernetes.io/name: {{ include "signaling.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: server
{{- end }}

{{- define "signaling.image" -}}
{{- with .Values.image }}
{{- .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ default $.Chart.AppVersion .tag }}{{ end }}
{{- end }}
{{- end }}

{{- define "signaling.serviceAccountName" -}}
{{- default (ternary (include "signaling.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name }}
{{- end }}

{{- define "signaling.pathPrefix" -}}
{{- get .Values.config "path-prefix" | trimSuffix "/" }}
{{- end }}

{{- /* The name of the Secret that holds something: the user's own, or the chart's. */}}
{{- define "signaling.secretName" -}}
{{- default (include "signaling.fullname" .root) .from.name }}
{{- end }}

{{- /*
What the chart's Secret holds, by key, as JSON. A value of an existing Secret is not among it.
*/}}
{{- define "signaling.ownSecrets" -}}
{{- $own := dict }}
{{- $v := .Values }}
{{- if and $v.backplane.url (not $v.backplane.existingSecret.name) (not $v.backplane.passwordSecret.name) }}
{{- $_ := set $own $v.backplane.existingSecret.key $v.backplane.url }}
{{- end }}
{{- if and $v.auth.keys (not $v.auth.existingSecret.name) }}
{{- $_ := set $own $v.auth.existingSecret.key $v.auth.keys }}
{{- end }}
{{- if and $v.turn.secret (not $v.turn.existingSecret.name) }}
{{- $_ := set $own $v.turn.existingSecret.key $v.turn.secret }}
{{- end }}
{{- if and $v.iceSource.token (not $v.iceSource.existingSecret.name) }}
{{- $_ := set $own $v.iceSource.existingSecret.key $v.iceSource.token }}
{{- end }}
{{- if and $v.webhook.secrets (not $v.webhook.existingSecret.name) }}
{{- $_ := set $own $v.webhook.existingSecret.key (join "\n" $v.webhook.secrets) }}
{{- end }}
{{- if and $v.admin.enabled $v.admin.tokens (not $v.admin.existingSecret.name) }}
{{- $_ := set $own $v.admin.existingSecret.key (join "\n" $v.admin.tokens) }}
{{- end }}
{{- /* They may have passwords in them. */}}
{{- if $v.iceServers }}
{{- $_ := set $own "ice-servers.json" (toRawJson $v.iceServers) }}
{{- end }}
{{- toRawJson $own }}
{{- end }}

{{- /*
The files of secrets in /etc/signaling, as a JSON object: the name of the file, and where it comes from.
*/}}
{{- define "signaling.secretFiles" -}}
{{- $files := dict }}
{{- $v := .Values }}
{{- if and $v.backplane.passwordSecret.name (not $v.backplane.existingSecret.name) }}
{{- $_ := set $files "backplane-password" $v.backplane.passwordSecret }}
{{- end }}
{{- if or $v.auth.keys $v.auth.existingSecret.name }}
{{- $_ := set $files "jwt-keys" $v.auth.existingSecret }}
{{- end }}
{{- if or $v.turn.secret $v.turn.existingSecret.name }}
{{- $_ := set $files "turn-secret" $v.turn.existingSecret }}
{{- end }}
{{- if or $v.iceSource.token $v.iceSource.existingSecret.name }}
{{- $_ := set $files "ice-source-token" $v.iceSource.existingSecret }}
{{- end }}
{{- if or $v.webhook.secrets $v.webhook.existingSecret.name }}
{{- $_ := set $files "webhook-secrets" $v.webhook.existingSecret }}
{{- end }}
{{- if and $v.admin.enabled (or $v.admin.tokens $v.admin.existingSecret.name) }}
{{- $_ := set $files "admin-tokens" $v.admin.existingSecret }}
{{- end }}
{{- if $v.iceServers }}
{{- $_ := set $files "ice-servers.json" (dict "name" "" "key" "ice-servers.json") }}
{{- end }}
{{- toRawJson $files }}
{{- end }}

{{- /* Whether the URL of the backplane is in the environment, from a Secret. */}}
{{- define "signaling.backplaneFromSecret" -}}
{{- with .Values.backplane }}
{{- if or .existingSecret.name (and .url (not .passwordSecret.name)) }}true{{ end }}
{{- end }}
{{- end }}

{{- /* The options that the chart sets itself, as a JSON object. */}}
{{- define "signaling.ownOptions" -}}
{{- $own := dict "port" 8081 }}
{{- $v := .Values }}
{{- $files := include "signaling.secretFiles" . | fromJson }}
{{- $tcp := ternary "tcp6" "tcp" $v.listenOnIPv6 }}
{{- if $v.metrics.enabled }}
{{- $_ := set $own "metrics-listen" (printf "%s:%d" $tcp (int $v.metrics.port)) }}
{{- end }}
{{- if $v.admin.enabled }}
{{- $_ := set $own "admin-listen" (printf "%s:%d" $tcp (int $v.admin.port)) }}
{{- end }}
{{- with $v.backplane }}
{{- if and .url .passwordSecret.name (not .existingSecret.name) }}
{{- $mark := ternary "&" "?" (contains "?" .url) }}
{{- $_ := set $own "backplane" (printf "%s%spassword-file=backplane-password" .url $mark) }}
{{- end }}
{{- end }}
{{- with $v.auth }}
{{- if hasKey $files "jwt-keys" }}
{{- $check := "jwt:jwt-keys" }}
{{- range $name, $value := dict "alg" .algorithm "audience" .audience "issuer" .issuer "leeway" .leeway }}
{{- if $value }}{{ $check = printf "%s:%s=%v" $check $name $value }}{{ end }}
{{- end }}
{{- $_ := set $own "auth" $check }}
{{- end }}
{{- end }}
{{- if $v.turn.uris }}{{ $_ := set $own "turn-uri" $v.turn.uris }}{{ end }}
{{- if $v.iceSource.url }}{{ $_ := set $own "ice-source" $v.iceSource.url }}{{ end }}
{{- if $v.webhook.url }}{{ $_ := set $own "webhook" $v.webhook.url }}{{ end }}
{{- range $option, $file := dict
      "turn-secret-file" "turn-secret" "ice-source-token-file" "ice-source-token" "ice-servers" "ice-servers.json"
      "webhook-secret-file" "webhook-secrets" "admin-token-file" "admin-tokens" }}
{{- if hasKey $files $file }}{{ $_ := set $own $option $file }}{{ end }}
{{- end }}
{{- toRawJson $own }}
{{- end }}

{{- /* A value in TOML. Helm reads every number as a float; the server wants whole numbers without a point. */}}
{{- define "signaling.tomlValue" -}}
{{- if kindIs "slice" . -}}
[{{ range $at, $item := . }}{{ if $at }}, {{ end }}{{ include "signaling.tomlValue" $item }}{{ end }}]
{{- else if kindIs "string" . -}}
{{ toRawJson . }}
{{- else if kindIs "float64" . -}}
{{ ternary (int64 . | toString) (toString .) (eq (float64 (int64 .)) .) }}
{{- else -}}
{{ toString . }}
{{- end }}
{{- end }}

{{- /* The configuration file. */}}
{{- define "signaling.toml" -}}
{{- $options := mergeOverwrite (deepCopy .Values.config) (include "signaling.ownOptions" . | fromJson) }}
{{- range $name, $value := omit $options "topics" }}
{{ $name }} = {{ include "signaling.tomlValue" $value }}
{{- end }}
{{- range .Values.config.topics }}

[[topics]]
{{- range $name, $value := . }}
{{ $name }} = {{ include "signaling.tomlValue" $value }}
{{- end }}
{{- end }}
{{- end }}

{{- /* The most seconds that a pod takes to stop, and ten more. */}}
{{- define "signaling.gracePeriod" -}}
{{- $c := .Values.config }}
{{- $shutdown := ternary (get $c "shutdown-timeout") 10 (hasKey $c "shutdown-timeout") }}
{{- $webhook := ternary 5 0 (not (empty .Values.webhook.url)) }}
{{- addf (get $c "drain-delay" | default 0) (get $c "drain-spread" | default 0) $shutdown $webhook 10 | ceil | int }}
{{- end }}

{{- /* The paths for clients, as a JSON list: the path and whether what is below it is meant too. */}}
{{- define "signaling.publicPaths" -}}
{{- $prefix := include "signaling.pathPrefix" . }}
{{- $paths := list (dict "path" (printf "%s/ws/" $prefix) "below" true) }}
{{- $files := list }}
{{- if or (get .Values.config "serve-client") .Values.config.demo }}
{{- $files = list "signaling.js" "sealing.js" }}
{{- end }}
{{- if .Values.config.demo }}
{{- $files = concat $files (list "" "demo.js" "demo-text.js" "demo.css" "favicon.svg") }}
{{- end }}
{{- range $files }}
{{- $paths = append $paths (dict "path" (printf "%s/%s" $prefix .) "below" false) }}
{{- end }}
{{- toRawJson $paths }}
{{- end }}

{{- /* Fail with a clear message if values contradict each other. */}}
{{- define "signaling.check" -}}
{{- $v := .Values }}
{{- $wrong := list }}
{{- $pods := ternary $v.autoscaling.maxReplicas $v.replicaCount $v.autoscaling.enabled | int }}
{{- $backplane := or $v.backplane.url $v.backplane.existingSecret.name $v.config.backplane }}
{{- if and (gt $pods 1) (not $backplane) (not $v.topicsByProxy) }}
{{- $wrong = append $wrong (printf "%d pods without a backplane: peers of a topic on different pods would not see each other; set backplane.url or backplane.existingSecret, or topicsByProxy if a proxy sends each topic to one pod" $pods) }}
{{- end }}
{{- if and $v.backplane.passwordSecret.name (not $v.backplane.url) }}
{{- $wrong = append $wrong "backplane.passwordSecret: set backplane.url, without a password" }}
{{- end }}
{{- $files := include "signaling.secretFiles" . | fromJson }}
{{- $needs := list
      (list "turn.uris" $v.turn.uris "turn.secret or turn.existingSecret" "turn-secret" true)
      (list "webhook.url" $v.webhook.url "webhook.secrets or webhook.existingSecret" "webhook-secrets" true)
      (list "admin.enabled" $v.admin.enabled "admin.tokens or admin.existingSecret" "admin-tokens" true)
      (list "iceSource.url" $v.iceSource.url "iceSource.token or iceSource.existingSecret" "ice-source-token" false) }}
{{- range $needs }}
{{- if and (index . 1) (index . 4) (not (hasKey $files (index . 3))) }}
{{- $wrong = append $wrong (printf "%s: a secret is needed, in %s" (index . 0) (index . 2)) }}
{{- else if and (not (index . 1)) (hasKey $files (index . 3)) }}
{{- $wrong = append $wrong (printf "%s: it has no use without %s" (index . 2) (index . 0)) }}
{{- end }}
{{- end }}
{{- if and $v.httpRoute.enabled (not $v.httpRoute.parentRefs) }}
{{- $wrong = append $wrong "httpRoute.enabled: name the Gateway in httpRoute.parentRefs" }}
{{- end }}
{{- if and (or $v.auth.algorithm $v.auth.audience $v.auth.issuer $v.auth.leeway) (not (hasKey $files "jwt-keys")) }}
{{- $wrong = append $wrong "auth: without auth.keys or auth.existingSecret everybody may join, and its other values have no use" }}
{{- end }}
{{- $password := "^[^/]*//[^/?#]*:[^/?#]*@" }}
{{- if and $v.backplane.passwordSecret.name (regexMatch $password $v.backplane.url) }}
{{- $wrong = append $wrong "backplane.url: it has a password, and would be in a ConfigMap; that of backplane.passwordSecret is used" }}
{{- end }}
{{- if regexMatch $password ($v.config.backplane | default "") }}
{{- $wrong = append $wrong "config.backplane: it has a password, and would be in a ConfigMap; set backplane.url" }}
{{- end }}
{{- $name := include "signaling.fullname" . }}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) }}
{{- $wrong = append $wrong (printf "the name %q is none for a Service, which takes lower-case letters, digits and -, and a letter first; set fullnameOverride" $name) }}
{{- end }}
{{- $ports := list (list "clients" 8081) }}
{{- if $v.metrics.enabled }}{{ $ports = append $ports (list "metrics.port" (int $v.metrics.port)) }}{{ end }}
{{- if $v.admin.enabled }}{{ $ports = append $ports (list "admin.port" (int $v.admin.port)) }}{{ end }}
{{- range $at, $one := $ports }}
{{- range slice $ports 0 $at }}
{{- if eq (index . 1) (index $one 1) }}
{{- $wrong = append $wrong (printf "%s: %d is the port of the %s; choose another" (index $one 0) (index $one 1) (index . 0 | trimSuffix ".port")) }}
{{- end }}
{{- end }}
{{- end }}
{{- range list "serviceMonitor" "prometheusRule" "dashboard" }}
{{- if and (get $v.metrics . ).enabled (not $v.metrics.enabled) }}
{{- $wrong = append $wrong (printf "metrics.%s.enabled: it has no use without metrics.enabled" .) }}
{{- end }}
{{- end }}
{{- $of := dict "nodePort" "NodePort or LoadBalancer" "externalTrafficPolicy" "NodePort or LoadBalancer"
      "loadBalancerClass" "LoadBalancer" "loadBalancerSourceRanges" "LoadBalancer" }}
{{- range $key, $types := $of }}
{{- if and (get $v.service $key) (not (contains $v.service.type $types)) }}
{{- $wrong = append $wrong (printf "service.%s: it needs service.type %s" $key $types) }}
{{- end }}
{{- end }}
{{- $taken := include "signaling.labels" . | fromYaml | keys | concat (include "signaling.selectorLabels" . | fromYaml | keys) }}
{{- range $where, $labels := dict "podLabels" $v.podLabels "metrics.serviceMonitor.labels" $v.metrics.serviceMonitor.labels
      "metrics.prometheusRule.labels" $v.metrics.prometheusRule.labels "metrics.dashboard.labels" $v.metrics.dashboard.labels }}
{{- range $label, $_ := $labels }}
{{- if has $label $taken }}
{{- $wrong = append $wrong (printf "%s: the chart sets %s itself" $where $label) }}
{{- end }}
{{- end }}
{{- end }}
{{- with $v.autoscaling }}
{{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) }}
{{- $wrong = append $wrong "autoscaling.minReplicas: more than autoscaling.maxReplicas" }}
{{- end }}
{{- if and .enabled (not .targetCPUUtilizationPercentage) (not .metrics) }}
{{- $wrong = append $wrong "autoscaling.enabled: it needs targetCPUUtilizationPercentage or metrics" }}
{{- end }}
{{- end }}
{{- $own := include "signaling.ownOptions" . | fromJson }}
{{- if include "signaling.backplaneFromSecret" . }}{{ $_ := set $own "backplane" "" }}{{ end }}
{{- range $name, $_ := $v.config }}
{{- if hasKey $own $name }}
{{- $wrong = append $wrong (printf "config.%s: the chart sets this option itself, by another value; see its README" $name) }}
{{- end }}
{{- end }}
{{- if $wrong }}
{{- fail (printf "\n\n  %s\n" (join "\n  " $wrong)) }}
{{- end }}
{{- end }}

{{- define "signaling.testLabels" -}}
app.kubernetes.io/name: {{ include "signaling.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: test
{{- end }}
