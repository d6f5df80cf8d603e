{{/* What the Job checks: no certificate, which may not be there before the first install. */}}
{{- define "cachalot.checkedConfig" -}}
{{- omit (include "cachalot.config" . | fromYaml) "tls" | toYaml }}
{{- end }}

{{/*
How the Job checks. "run": whether there is one; it would wait without end for a variable or a
file that comes with the release, which waits for the Job. "env": the variables of extraEnv
that the configuration uses. "files": by NAME.KEY, what stands in for a file of a Secret
that may not exist yet. Values of an older release have no configCheck, and so no Job.
*/}}
{{- define "cachalot.checkPlan" -}}
{{- $config := include "cachalot.checkedConfig" . }}
{{- $run := (.Values.configCheck | default dict).enabled }}
{{- $used := list }}
{{- range regexFindAll "[$][{]\\w+" ($config | replace "$${" "") -1 }}{{ $used = append $used (trimPrefix "${" .) }}{{ end }}
{{- $env := list }}
{{- range .Values.extraEnv }}
{{- if has .name $used }}
{{- if hasKey . "valueFrom" }}{{ $run = false }}{{ end }}
{{- $env = append $env . }}
{{- $used = without $used .name }}
{{- end }}
{{- end }}
{{- if and $used .Values.extraEnvFrom }}{{ $run = false }}{{ end }}
{{- $files := dict }}
{{- range regexFindAll "(password_file|token_file|docker_config|ca_file): \\S+" $config -1 }}
{{- $kind := regexFind "^\\w+" . }}
{{- $path := trimPrefix (printf "%s: " $kind) . | trimAll "\"'" }}
{{- $name := regexReplaceAll "^/run/secrets/([^/]+)/.*" $path "${1}" }}
{{- $secret := get ($.Values.secrets | default dict) $name | default dict }}
{{- if $secret.existingSecret }}{{ $_ := set $files (printf "%s.%s" $name (base $path)) $kind }}
{{- else if and (hasPrefix "/" $path) (not $secret) (or $.Values.extraVolumeMounts (not (hasPrefix "/run/secrets/" $path))) }}{{ $run = false }}
{{- end }}
{{- end }}
{{- toYaml (dict "run" $run "env" $env "files" $files) }}
{{- end }}

{{/* A name that none of "secrets" has. */}}
{{- define "cachalot.checkSecret" -}}
{{- include "cachalot.fullname" . }}.check
{{- end }}

{{/* (list . NAME SECRET FILES): where the Job's files of one of "secrets" come from. Of two sources the later one goes. */}}
{{- define "cachalot.checkSources" -}}
{{- $name := index . 1 }}
{{- $secret := index . 2 }}
{{- $items := list }}
{{- range $key := $secret.data | default (index . 3) | keys | sortAlpha }}
{{- if $secret.data }}{{ $items = append $items (dict "key" (printf "%s.%s" $name $key) "path" $key) }}
{{- else if hasPrefix (printf "%s." $name) $key }}{{ $items = append $items (dict "key" $key "path" (trimPrefix (printf "%s." $name) $key)) }}
{{- end }}
{{- end }}
{{- $sources := list }}
{{- if $secret.data }}{{ $sources = list (dict "secret" (dict "name" (include "cachalot.checkSecret" (index . 0)) "items" $items)) }}
{{- else }}
{{- if $items }}{{ $sources = list (dict "configMap" (dict "name" (printf "%s-check" (include "cachalot.fullname" (index . 0))) "items" $items)) }}{{ end }}
{{- $sources = append $sources (dict "secret" (dict "name" $secret.existingSecret "optional" true)) }}
{{- end }}
{{- toYaml $sources }}
{{- end }}
