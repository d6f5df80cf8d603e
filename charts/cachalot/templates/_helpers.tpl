{{- define "cachalot.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* At most 52 characters: names of others are made of it, and of a StatefulSet's pods labels of 63. */}}
{{- define "cachalot.fullname" -}}
{{- $name := include "cachalot.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "cachalot.namespace" -}}
{{- .Values.namespaceOverride | default .Release.Namespace }}
{{- end }}

{{/* What never changes while a release lives: a StatefulSet's selector and claims cannot. */}}
{{- define "cachalot.selectorLabels" -}}
app.kubernetes.io/name: {{ include "cachalot.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: mirror
{{- end }}

{{/* (list . COMPONENT LABELS...) */}}
{{- define "cachalot.labels" -}}
{{- $root := index . 0 }}
{{- $own := dict "app.kubernetes.io/name" (include "cachalot.name" $root)
  "app.kubernetes.io/instance" $root.Release.Name
  "app.kubernetes.io/component" (index . 1)
  "app.kubernetes.io/version" ($root.Chart.AppVersion | trunc 63)
  "app.kubernetes.io/managed-by" $root.Release.Service
  "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-") }}
{{- $labels := dict }}
{{- range concat (slice . 2) (list $root.Values.commonLabels $own) }}
{{- $labels = merge $labels . }}
{{- end }}
{{- toYaml (mergeOverwrite $labels (pick $own "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component")) }}
{{- end }}

{{/* (list . NAME COMPONENT LABELS ANNOTATIONS): the metadata of an object; the last two may be missing. */}}
{{- define "cachalot.metadata" -}}
{{- $root := index . 0 }}
{{- $more := concat (slice . 3) (list dict dict) }}
{{- $annotations := merge dict (index $more 1 | default dict) ($root.Values.commonAnnotations | default dict) -}}
name: {{ index . 1 }}
namespace: {{ include "cachalot.namespace" $root }}
labels: {{- include "cachalot.labels" (list $root (index . 2) (index $more 0 | default dict)) | nindent 2 }}
{{- with $annotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "cachalot.replicas" -}}
{{- ternary .Values.replicas .Values.replicaCount (kindIs "invalid" .Values.replicaCount) | int64 }}
{{- end }}

{{- define "cachalot.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "cachalot.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "cachalot.nodesServiceAccountName" -}}
{{- .Values.nodes.serviceAccountName | default (ternary (printf "%s-node" (include "cachalot.fullname" .)) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "cachalot.global" -}}
{{- toYaml (.Values.global | default dict) }}
{{- end }}

{{/* A registry that is set by itself replaces the one in the repository. */}}
{{- define "cachalot.image" -}}
{{- $image := .Values.image }}
{{- $repository := $image.repository }}
{{- with (include "cachalot.global" . | fromYaml).imageRegistry | default $image.registry }}
{{- $repository = printf "%s/%s" (trimSuffix "/" .) (regexReplaceAll "^(localhost|[^/]*[.:][^/]*)/" $repository "") }}
{{- end }}
{{- $repository }}{{ if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* The key with the Secrets of a larger chart, each a name or as here, and our own; nothing without any. */}}
{{- define "cachalot.imagePullSecrets" -}}
{{- $secrets := list }}
{{- range concat ((include "cachalot.global" . | fromYaml).imagePullSecrets | default list) (.Values.imagePullSecrets | default list) }}
{{- $secrets = append $secrets (kindIs "map" . | ternary . (dict "name" .)) }}
{{- end }}
{{- with uniq $secrets -}}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* A number or text of the values as it is written there, but for a fraction. */}}
{{- define "cachalot.text" -}}
{{- ternary (int64 . | toString) (toString .) (kindIs "float64" .) }}
{{- end }}

{{/* A quantity of Kubernetes such as 60Gi or 1.5G, or one of GOMEMLIMIT such as 460MiB, in bytes; nothing if it has another form. */}}
{{- define "cachalot.bytes" -}}
{{- $quantity := include "cachalot.text" . }}
{{- if regexMatch "^[0-9]+([.][0-9]+)?([kMGT]|[KMGT]iB?|B)?$" $quantity }}
{{- $number := regexFind "^[0-9.]+" $quantity }}
{{- $unit := trimPrefix $number $quantity | trimSuffix "B" }}
{{- $bytes := dict "" 1 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 }}
{{- mulf (float64 $number) (get $bytes $unit) | floor | int64 }}
{{- end }}
{{- end }}

{{/* Nine tenths of a quantity, in whole MiB; nothing if it has another form. */}}
{{- define "cachalot.mostOf" -}}
{{- with include "cachalot.bytes" . }}{{ divf (mulf (float64 .) 0.9) 1048576 | floor | int64 }}MiB{{ end }}
{{- end }}

{{- define "cachalot.memoryLimit" -}}
{{- with ((.Values.resources | default dict).limits | default dict).memory }}{{ include "cachalot.text" . }}{{ end }}
{{- end }}

{{/* GOMEMLIMIT as extraEnv sets it. */}}
{{- define "cachalot.ownGoMemory" -}}
{{- range .Values.extraEnv }}{{ if eq .name "GOMEMLIMIT" }}{{ .value }}{{ end }}{{ end }}
{{- end }}

{{/* GOMEMLIMIT in bytes: that of extraEnv, or else nine tenths of the memory limit; nothing where neither is known. */}}
{{- define "cachalot.goMemory" -}}
{{- include "cachalot.bytes" (include "cachalot.ownGoMemory" .) | default (include "cachalot.bytes" (include "cachalot.mostOf" (include "cachalot.memoryLimit" .))) }}
{{- end }}

{{/*
What cachalot takes at most, in KiB; test/chart/memory_test.go says where each comes from:
a client's connection, a download, and all else that does not depend on their number. A
quarter of GOMEMLIMIT is for manifests and lists, which are whole in memory.
*/}}
{{- define "cachalot.memory" -}}
{connection: 512, download: 256, fixed: 131072}
{{- end }}

{{/* KiB that max_fills downloads and what is fixed take. */}}
{{- define "cachalot.memoryBeside" -}}
{{- $memory := include "cachalot.memory" . | fromYaml }}
{{- $fills := include "cachalot.text" (.Values.config.storage | default dict).max_fills }}
{{- if not (regexMatch "^[0-9]+$" $fills) }}{{ $fills = "256" }}{{ end }}
{{- add (int64 $memory.fixed) (mul (int64 $memory.download) (int64 $fills)) }}
{{- end }}

{{/* The connections that GOMEMLIMIT holds, which may be below zero; nothing where it is not known. */}}
{{- define "cachalot.connections" -}}
{{- with include "cachalot.goMemory" . }}
{{- $memory := include "cachalot.memory" $ | fromYaml }}
{{- $left := sub (div (mul (div (int64 .) 1024) 3) 4) (include "cachalot.memoryBeside" $ | int64) }}
{{- divf (float64 $left) (float64 $memory.connection) | floor | int64 }}
{{- end }}
{{- end }}

{{/* (list . CONNECTIONS): the GOMEMLIMIT that holds them, in MiB. */}}
{{- define "cachalot.memoryFor" -}}
{{- $memory := include "cachalot.memory" . | fromYaml }}
{{- $wanted := add (mul (int64 (index . 1)) (int64 $memory.connection)) (include "cachalot.memoryBeside" (index . 0) | int64) }}
{{- divf (mulf (float64 $wanted) 4) 3 1024 | ceil | int64 }}
{{- end }}

{{- define "cachalot.tls" -}}
{{- if or .Values.tls.secretName .Values.tls.certManager.enabled }}true{{ end }}
{{- end }}

{{- define "cachalot.tlsSecret" -}}
{{- .Values.tls.secretName | default (printf "%s-tls" (include "cachalot.fullname" .)) }}
{{- end }}

{{- define "cachalot.scheme" -}}
{{- ternary "https" "http" (eq (include "cachalot.tls" .) "true") }}
{{- end }}

{{/* The configuration: what values say, and the chart's own for what they do not. */}}
{{- define "cachalot.config" -}}
{{- $own := dict "listen" ":5000" "admin" (dict "listen" ":5001") "storage" (dict "path" "/var/lib/cachalot") "drain_delay" "5s" "log" (dict "format" "json") }}
{{- with include "cachalot.maxSize" . }}{{ $_ := set $own.storage "max_size" . }}{{ end }}
{{- with include "cachalot.minFree" . }}{{ $_ := set $own.storage "min_free" . }}{{ end }}
{{- with include "cachalot.connections" . }}
{{- if gt (int64 .) 0 }}{{ $_ := set $own "max_connections" (min 10000 (int64 .)) }}{{ end }}
{{- end }}
{{- if include "cachalot.tls" . }}
{{- $_ := set $own "tls" (dict "certificate" "/run/secrets/tls/tls.crt" "key" "/run/secrets/tls/tls.key") }}
{{- end }}
{{- $config := deepCopy .Values.config }}
{{- range $section, $value := $own }}
{{- if kindIs "invalid" (get $config $section | default nil) }}{{ $_ := set $config $section $value }}
{{- else if kindIs "map" $value }}
{{- range $key, $value := $value }}
{{- if not (hasKey (get $config $section) $key) }}{{ $_ := set (get $config $section) $key $value }}{{ end }}
{{- end }}
{{- end }}
{{- end }}
{{- toYaml $config }}
{{- end }}

{{/* The part that only a restart puts into effect: keepFixed in cmd/cachalot/server/reload.go names it. */}}
{{- define "cachalot.fixedConfig" -}}
{{- $config := include "cachalot.config" . | fromYaml }}
{{- $fixed := pick $config "listen" "max_connections" "fair_share" "tls" "admin" "tracing" "storage" }}
{{- toJson (set $fixed "log.format" (get ($config.log | default dict) "format")) }}
{{- end }}

{{- define "cachalot.port" -}}
{{- regexFind "[0-9]+$" (include "cachalot.config" . | fromYaml).listen }}
{{- end }}

{{- define "cachalot.adminPort" -}}
{{- regexFind "[0-9]+$" (include "cachalot.config" . | fromYaml).admin.listen }}
{{- end }}

{{/* Whether others than the pod itself reach the admin listener. */}}
{{- define "cachalot.adminOpen" -}}
{{- if not (regexMatch "^(127[.]|localhost:|\\[::1\\])" (include "cachalot.config" . | fromYaml).admin.listen) }}true{{ end }}
{{- end }}

{{/* (list . PATH): what a probe does. */}}
{{- define "cachalot.probe" -}}
{{- $root := index . 0 }}
{{- if include "cachalot.adminOpen" $root -}}
httpGet:
  path: {{ index . 1 }}
  port: admin
{{- else -}}
exec:
  command: [/cachalot, healthcheck, --url, "http://{{ (include "cachalot.config" $root | fromYaml).admin.listen }}{{ index . 1 }}"]
{{- end }}
{{- end }}

{{/* The mirror's URL for nodes. The kubelet fills in addresses, which may be of IPv6. */}}
{{- define "cachalot.nodesMirror" -}}
{{- if .Values.nodes.mirror }}{{ .Values.nodes.mirror }}
{{- else if .Values.service.nodePort }}http://[$(HOST_IP)]:{{ .Values.service.nodePort }}
{{- else }}
{{- $name := include "cachalot.fullname" . | replace "-" "_" | upper }}http://[$({{ $name }}_SERVICE_HOST)]:{{ .Values.service.port }}
{{- end }}
{{- end }}

{{/* What contradicts itself, or puts a secret where it is no secret. */}}
{{- define "cachalot.check" -}}
{{- $config := include "cachalot.config" . | fromYaml }}
{{- include "cachalot.checkNames" . }}
{{- include "cachalot.checkStorage" . }}
{{- if not (hasPrefix "/" $config.storage.path) }}
{{- fail "config.storage.path must be a full path, such as /var/lib/cachalot: the cache is mounted there" }}
{{- end }}
{{- if and (eq .Values.service.type "ClusterIP") (or .Values.service.nodePort .Values.service.externalTrafficPolicy) }}
{{- fail "service.nodePort and service.externalTrafficPolicy are for a service.type NodePort or LoadBalancer: set it, or leave them out" }}
{{- end }}
{{- if and (not (include "cachalot.adminOpen" .)) (or .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled) }}
{{- fail "Prometheus cannot reach config.admin.listen: set it to :5001, or do without serviceMonitor and podMonitor" }}
{{- end }}
{{- if and .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled }}
{{- fail "metrics.serviceMonitor and metrics.podMonitor would count everything twice: enable one of them" }}
{{- end }}
{{- include "cachalot.checkMemory" . }}
{{- with .Values.nodes }}
{{- if and .enabled .serviceAccountName (eq .serviceAccountName (include "cachalot.serviceAccountName" $)) }}
{{- fail "nodes.serviceAccountName is the mirror's: with its cloud role, root on every node could read what the mirror may; name another, or leave it out" }}
{{- end }}
{{- if and .enabled (not .mirror) (include "cachalot.tls" $) }}
{{- fail "nodes.mirror is needed with tls: write the mirror's URL by a name that is in its certificate and that nodes resolve, such as https://mirror.example:5000" }}
{{- end }}
{{- if and .enabled (not (dig "verify" true .)) (not .configPath) }}
{{- fail "nodes.configPath is needed without nodes.verify: write the folder in config_path of the nodes' containerd, such as /etc/containerd/certs.d" }}
{{- end }}
{{- if and .enabled .configureContainerd (not (dig "verify" true .)) }}
{{- fail "nodes.configureContainerd needs nodes.verify: set nodes.verify to true" }}
{{- end }}
{{- if and .caSecret (not (hasPrefix "https://" .mirror)) }}
{{- fail "nodes.caSecret is for an https:// mirror: set nodes.mirror to one, or leave it out" }}
{{- end }}
{{- end }}
{{- range $name, $upstream := $config.upstreams }}
{{- range concat (list ($upstream | default dict)) (dig "accounts" list ($upstream | default dict)) }}
{{- if and .password (not (regexMatch "^\\$\\{[^}]+\\}$" (toString .password))) }}
{{- fail (printf "config.upstreams.%s has a password, and everybody may read a ConfigMap: put it under secrets, and its path into password_file" $name) }}
{{- end }}
{{- end }}
{{- end }}
{{- if and $config.admin.token (not (regexMatch "^\\$\\{[^}]+\\}$" (toString $config.admin.token))) }}
{{- fail "config.admin has a token, and everybody may read a ConfigMap: put it under secrets, and its path into token_file" }}
{{- end }}
{{- end }}

{{/* Two names for one thing, of which both are set. */}}
{{- define "cachalot.checkNames" -}}
{{- $count := include "cachalot.replicas" . | int }}
{{- if and (ne (int .Values.replicas) $count) (ne (int .Values.replicas) 1) }}
{{- fail (printf "replicas is %d and replicaCount %d, which is another name for it: set one of them" (int .Values.replicas) $count) }}
{{- end }}
{{- with .Values.podDisruptionBudget }}
{{- if and (include "cachalot.isSet" .minAvailable) (include "cachalot.isSet" .maxUnavailable) }}
{{- fail (printf "podDisruptionBudget.minAvailable is %v and maxUnavailable %v, and Kubernetes takes one of them: leave the other empty" .minAvailable .maxUnavailable) }}
{{- end }}
{{- end }}
{{- if eq (toString .Values.enabled) "false" }}
{{- fail "enabled is false, and the chart is installed all the same: in a larger chart, name this value as the condition of the dependency; alone, uninstall the release" }}
{{- end }}
{{- end }}

{{/* Whether a value is there, be it 0. */}}
{{- define "cachalot.isSet" -}}
{{- if not (or (kindIs "invalid" .) (eq (toString .) "")) }}true{{ end }}
{{- end }}

{{/* Memory that does not hold what the configuration allows: the kernel would end the mirror under load. */}}
{{- define "cachalot.checkMemory" -}}
{{- $limit := include "cachalot.memoryLimit" . }}
{{- $own := include "cachalot.bytes" (include "cachalot.ownGoMemory" .) }}
{{- $most := include "cachalot.bytes" $limit }}
{{- if and $own $most (ge (int64 $own) (int64 $most)) }}
{{- fail (printf "GOMEMLIMIT in extraEnv is %s, and resources.limits.memory %s: set it below that, to %s, or leave it out" (include "cachalot.ownGoMemory" .) $limit (include "cachalot.mostOf" $limit)) }}
{{- end }}
{{- with include "cachalot.connections" . }}
{{- $held := int64 . }}
{{- $wanted := include "cachalot.text" $.Values.config.max_connections }}
{{- if not (regexMatch "^[0-9]+$" $wanted) }}{{ $wanted = "16" }}{{ end }}
{{- if gt (int64 $wanted) $held }}
{{- $needed := include "cachalot.memoryFor" (list $ $wanted) | int64 }}
{{- $key := ternary "GOMEMLIMIT in extraEnv" "resources.limits.memory" (ne $own "") }}
{{- $value := ternary (printf "%dMiB" $needed) (printf "%dMi" (divf (float64 $needed) 0.9 | ceil | int64)) (ne $own "") }}
{{- fail (printf "%s holds %d of %s connections beside the downloads of config.storage.max_fills: set it to %s, or lower config.max_connections or config.storage.max_fills" $key (max 0 $held) $wanted $value) }}
{{- end }}
{{- end }}
{{- end }}

{{/* The mirror's URL for clients, as far as it is known before it is installed. */}}
{{- define "cachalot.url" -}}
{{- $service := .Values.service }}
{{- $inside := printf "%s.%s.svc" (include "cachalot.fullname" .) (include "cachalot.namespace" .) }}
{{- if and .Values.httpRoute.enabled .Values.httpRoute.hostnames }}https://{{ first .Values.httpRoute.hostnames }}
{{- else if .Values.ingress.enabled }}{{ ternary "https" "http" (gt (len .Values.ingress.tls) 0) }}://{{ first .Values.ingress.hosts }}
{{- else if and (eq $service.type "LoadBalancer") $service.loadBalancerIP }}{{ include "cachalot.scheme" . }}://{{ ternary (printf "[%s]" $service.loadBalancerIP) $service.loadBalancerIP (contains ":" $service.loadBalancerIP) }}:{{ $service.port }}
{{- else if eq $service.type "ClusterIP" }}{{ include "cachalot.scheme" . }}://{{ $inside }}:{{ $service.port }}
{{- end }}
{{- end }}
