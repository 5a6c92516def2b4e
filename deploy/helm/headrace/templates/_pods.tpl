{{- /* Parts of pods that several templates have. */ -}}
{{- define "headrace.pod" -}}
automountServiceAccountToken: false
# Or every Service would be a variable HEADRACE_…, which is no setting and stops the process.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{- define "headrace.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "headrace.tracing" -}}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .Values.tracing.endpoint | quote }}
- name: OTEL_TRACES_SAMPLER
  value: {{ .Values.tracing.sampler | quote }}
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ .Values.tracing.samplerArgument | quote }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom:
    secretKeyRef:
      name: {{ .Values.existingSecret }}
      key: OTEL_EXPORTER_OTLP_HEADERS
      optional: true
{{- end }}

{{- define "headrace.spread" -}}
# Each kind of pod is counted by itself, and each release of it.
{{- range $spread := .Values.spread }}
- topologyKey: {{ $spread.topologyKey | quote }}
  maxSkew: {{ $spread.maxSkew }}
  whenUnsatisfiable: {{ $spread.whenUnsatisfiable | quote }}
  labelSelector:
    matchLabels:
      app.kubernetes.io/name: headrace
      app.kubernetes.io/instance: {{ $.Release.Name }}
  matchLabelKeys: [app.kubernetes.io/component, headrace/worker, pod-template-hash]
{{- end }}
{{- end }}
