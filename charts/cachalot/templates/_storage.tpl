{{/* A size of cachalot's such as 50GiB or 500MB, in bytes; nothing if it is a share, or not known before the start. */}}
{{- define "cachalot.sizeBytes" -}}
{{- include "cachalot.bytes" (regexReplaceAll "([kMGT])B$" (include "cachalot.text" .) "${1}") }}
{{- end }}

{{/* What the index takes at most, in MiB: config.storage.max_index twice, its reserve of 96, and its logs. */}}
{{- define "cachalot.indexSize" -}}
{{- $index := include "cachalot.sizeBytes" ((.Values.config.storage | default dict).max_index | default "256MiB") | default "268435456" }}
{{- add (div (mul 2 (int64 $index)) 1048576) 256 }}
{{- end }}

{{/*
What blobs may take; nothing where the size of the volume is not known. A disk is full
before the index has no space, but an emptyDir has a limit at which the kubelet evicts
the pod: there blobs leave the index what it takes.
*/}}
{{- define "cachalot.maxSize" -}}
{{- $size := include "cachalot.bytes" .Values.persistence.size | int64 }}
{{- $most := include "cachalot.mostOf" .Values.persistence.size }}
{{- if eq .Values.persistence.type "claim" }}{{ $most }}
{{- else if eq .Values.persistence.type "emptyDir" }}
{{- min (trimSuffix "MiB" $most | int64) (sub (div $size 1048576) (include "cachalot.indexSize" . | int64)) }}MiB
{{- end }}
{{- end }}

{{/* A node's own disk. The kubelet evicts pods when less than 10 % of it is free, or 15 % where the images are. */}}
{{- define "cachalot.minFree" -}}
{{- if has .Values.persistence.type (list "emptyDir" "hostPath") }}20%{{ end }}
{{- end }}

{{/* The container's resources. The scheduler does not know the size of an emptyDir, only requests. */}}
{{- define "cachalot.resources" -}}
{{- $resources := deepCopy (.Values.resources | default dict) }}
{{- if eq .Values.persistence.type "emptyDir" }}
{{- $_ := set $resources "requests" (merge dict ($resources.requests | default dict) (dict "ephemeral-storage" .Values.persistence.size)) }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{/* Two pods never share a folder of a node. To refuse several replicas is not enough: "kubectl scale" does not ask the chart. */}}
{{- define "cachalot.affinity" -}}
{{- $affinity := deepCopy (.Values.affinity | default dict) }}
{{- if eq .Values.persistence.type "hostPath" }}
{{- $apart := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" (include "cachalot.selectorLabels" . | fromYaml)) }}
{{- $anti := $affinity.podAntiAffinity | default dict }}
{{- $_ := set $anti "requiredDuringSchedulingIgnoredDuringExecution" (append ($anti.requiredDuringSchedulingIgnoredDuringExecution | default list) $apart) }}
{{- $_ := set $affinity "podAntiAffinity" $anti }}
{{- end }}
{{- with $affinity }}{{ toYaml . }}{{ end }}
{{- end }}

{{- define "cachalot.checkStorage" -}}
{{- with .Values.persistence }}
{{- if and (eq .type "existingClaim") (gt (include "cachalot.replicas" $ | int) 1) }}
{{- fail "persistence.type existingClaim is one volume, and each replica needs its own: set replicas to 1, or persistence.type to claim" }}
{{- end }}
{{- if and (has .type (list "claim" "emptyDir")) (lt (include "cachalot.bytes" .size | int64) 1073741824) }}
{{- fail (printf "persistence.size is %s, and the index alone may take more than half a GiB: set it to 1Gi or more" .size) }}
{{- end }}
{{- end }}
{{- if eq .Values.persistence.type "emptyDir" }}{{ include "cachalot.checkEmptyDir" . }}{{ end }}
{{- if eq .Values.persistence.type "claim" }}{{ include "cachalot.checkClaim" . }}{{ end }}
{{- end }}

{{/* What the kubelet would evict the pod for. */}}
{{- define "cachalot.checkEmptyDir" -}}
{{- $size := .Values.persistence.size }}
{{- $most := include "cachalot.maxSize" . }}
{{- if lt (trimSuffix "MiB" $most | int64) 1 }}
{{- fail (printf "persistence.size is %s, and the index may take %s MiB of it: set a larger size, or a lower config.storage.max_index" $size (include "cachalot.indexSize" .)) }}
{{- end }}
{{- $wanted := include "cachalot.text" (include "cachalot.config" . | fromYaml).storage.max_size }}
{{- $bytes := include "cachalot.sizeBytes" $wanted }}
{{- if or (hasSuffix "%" $wanted) (eq $bytes "0") (gt (int64 $bytes) (include "cachalot.bytes" $most | int64)) }}
{{- fail (printf "config.storage.max_size is %s, and the kubelet evicts the pod when its emptyDir is above persistence.size, %s: leave max_size out, set it to %s or less, or set a larger persistence.size" $wanted $size $most) }}
{{- end }}
{{- with get ((.Values.resources | default dict).limits | default dict) "ephemeral-storage" }}
{{- $limit := include "cachalot.bytes" . }}
{{- if and $limit (lt (int64 $limit) (include "cachalot.bytes" $size | int64)) }}
{{- fail (printf "resources.limits.ephemeral-storage is %v, and the emptyDir counts with up to persistence.size, %s: set it to more than that, or leave it out" . $size) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Only an upgrade in a live cluster sees what is there; it changes no object. */}}
{{- define "cachalot.checkClaim" -}}
{{- $name := include "cachalot.fullname" . }}
{{- $namespace := include "cachalot.namespace" . }}
{{- range (lookup "apps/v1" "StatefulSet" $namespace $name | default dict | dig "spec" "volumeClaimTemplates" list) }}
{{- $is := .spec.resources.requests.storage }}
{{- if ne (include "cachalot.mostOf" $is) (include "cachalot.mostOf" $.Values.persistence.size) }}
{{- fail (printf "persistence.size is %s, and Kubernetes changes no claim of a StatefulSet: make the claims themselves larger (kubectl edit pvc -n %s cache-%s-0), take the StatefulSet away from above its pods (kubectl delete statefulset -n %s %s --cascade=orphan), and upgrade again" $is $namespace $name $namespace $name) }}
{{- end }}
{{- end }}
{{- end }}
