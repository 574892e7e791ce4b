{{- define "slipway.labels" -}}
app.kubernetes.io/part-of: slipway
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "slipway.registryHost" -}}
slipway-registry.{{ .Release.Namespace }}:5000
{{- end -}}

{{/* Whether the chart has PodMonitors: "true" or nothing. */}}
{{- define "slipway.podMonitors" -}}
{{- $has := .Capabilities.APIVersions.Has "monitoring.coreos.com/v1" }}
{{- if or (eq .Values.monitoring.podMonitors "Always") (and $has (eq .Values.monitoring.podMonitors "Auto")) }}true{{ end }}
{{- end -}}

{{/* Whether pods are annotated to be scraped. */}}
{{- define "slipway.scrapeAnnotations" -}}
{{- $alone := not (include "slipway.podMonitors" .) }}
{{- if or (eq .Values.monitoring.scrapeAnnotations "Always") (and $alone (eq .Values.monitoring.scrapeAnnotations "Auto")) }}true{{ end }}
{{- end -}}

{{/* Relabelling of plain Prometheus as a PodMonitor writes it. */}}
{{- define "slipway.relabelings" -}}
{{- range . }}
{{- $rule := omit . "source_labels" "target_label" }}
{{- with .source_labels }}{{ $_ := set $rule "sourceLabels" . }}{{ end }}
{{- with .target_label }}{{ $_ := set $rule "targetLabel" . }}{{ end }}
- {{ toJson $rule }}
{{- end }}
{{- end -}}

{{- define "slipway.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 65532
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "slipway.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "slipway.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Where a pod runs; takes the values of the workload. */}}
{{- define "slipway.scheduling" -}}
{{- with .priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What the operator may do in the namespaces it watches: the verbs it uses and no others. */}}
{{- define "slipway.rules" -}}
- {apiGroups: [slipway.dev], resources: [modeldeployments], verbs: [get, list, watch]}
- {apiGroups: [slipway.dev], resources: [modeldeployments/status, modelartifacts/status], verbs: [update]}
- {apiGroups: [slipway.dev], resources: [modelartifacts], verbs: [get, list, watch, create, patch, delete]}
- {apiGroups: [apps], resources: [deployments], verbs: [get, list, watch, create, patch, delete]}
- {apiGroups: [""], resources: [services], verbs: [get, list, watch, create, patch, delete]}
- {apiGroups: [autoscaling], resources: [horizontalpodautoscalers], verbs: [get, list, watch, create, patch, delete]}
{{- if eq .Values.autoscaling.provider "HPA" }}
# those that another provider made go
- {apiGroups: [keda.sh], resources: [scaledobjects], verbs: [get, list, watch, delete]}
{{- else }}
- {apiGroups: [keda.sh], resources: [scaledobjects], verbs: [get, list, watch, create, patch, delete]}
{{- end }}
- {apiGroups: [batch], resources: [jobs], verbs: [get, list, watch, create, patch, delete]}
- {apiGroups: [""], resources: [pods], verbs: [get, list, watch]}
- {apiGroups: [gateway.networking.k8s.io], resources: [httproutes, grpcroutes], verbs: [get, list, watch, create, patch, delete]}
- {apiGroups: [""], resources: [events], verbs: [get, list, create, patch]}
{{- if .Values.accelerators.enabled }}
- {apiGroups: [resource.k8s.io], resources: [resourceclaimtemplates], verbs: [get, list, create, patch, delete]}
{{- end }}
{{- end -}}
