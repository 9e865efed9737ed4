{{/* The first part of all names. 40 characters, so that the longest last part still fits in 63. */}}
{{- define "fairlead.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The labels that select the pods of one part. Takes a list of the root and the part. */}}
{{- define "fairlead.selectorLabels" -}}
app.kubernetes.io/name: {{ (index . 0).Chart.Name }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* The labels of every object of one part. Takes a list of the root and the part. */}}
{{- define "fairlead.labels" -}}
{{ include "fairlead.selectorLabels" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "fairlead.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository (.tag | default $.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The rules of a role that `make manifests` copied from config/rbac. */}}
{{- define "fairlead.rules" -}}
{{- $root := index . 0 -}}
{{- (printf "files/rbac/%s.yaml" (index . 1) | $root.Files.Get | fromYaml).rules | toYaml -}}
{{- end -}}

{{/* The namespace of the Lease, which the configuration may name. */}}
{{- define "fairlead.leaseNamespace" -}}
{{- .Values.controller.config.leaderElection.namespace | default .Release.Namespace -}}
{{- end -}}

{{/* The logger's flags. */}}
{{- define "fairlead.loggerArgs" -}}
{{- with .level }}
- --zap-log-level={{ . }}
{{- end }}
{{- with .encoder }}
- --zap-encoder={{ . }}
{{- end }}
{{- with .stacktraceLevel }}
- --zap-stacktrace-level={{ . }}
{{- end }}
{{- with .timeEncoding }}
- --zap-time-encoding={{ . }}
{{- end }}
{{- end -}}

{{/* The address of the API server, for client-go's in-cluster configuration. */}}
{{- define "fairlead.apiServerEnv" -}}
{{- with .Values.apiServer }}
{{- if .host }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ .host | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ .port | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The port of a bindAddress. */}}
{{- define "fairlead.port" -}}
{{- regexFind "[0-9]+$" . -}}
{{- end -}}

{{/* The host of a bindAddress where it is one address, and nothing where it is all. */}}
{{- define "fairlead.host" -}}
{{- $host := regexReplaceAll ":[0-9]+$" . "" | trimPrefix "[" | trimSuffix "]" -}}
{{- if not (has $host (list "0.0.0.0" "::")) -}}
{{- $host -}}
{{- end -}}
{{- end -}}

{{/* What a schema cannot say. */}}
{{- define "fairlead.validate" -}}
{{- with .Values.controller -}}
{{- if and .enabled (gt (int .replicas) 1) (not .config.leaderElection.enabled) -}}
{{- fail (printf "controller.replicas is %d, but without controller.config.leaderElection.enabled all of them would act: set replicas to 1, or switch it on" (int .replicas)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
