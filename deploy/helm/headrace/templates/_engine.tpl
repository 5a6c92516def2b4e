{{- /* vLLM: alone, beside each worker, or on several nodes. */ -}}
{{- define "headrace.vllm" -}}
name: vllm
image: {{ .Values.engine.server.image }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
command:
  - vllm
  - serve
  - {{ .Values.engine.source | quote }}
  - --port
  - "8000"
  - --served-model-name
  - {{ .Values.engine.servedModel | quote }}
  - --tensor-parallel-size
  - {{ .Values.engine.server.tensorParallelSize | quote }}
  # Each is explained in docs/engines.md.
  - --enable-scale-out
  - --scheduling-policy
  - priority
  - --enable-prompt-tokens-details
  - --max-logprobs
  - "21"
  - --structured-outputs-config
  - '{"backend":"guidance","disable_any_whitespace":true}'
  {{- if .Values.engine.server.multiNode.enabled }}
  - --pipeline-parallel-size
  - {{ .Values.engine.server.multiNode.pipelineParallelSize | quote }}
  # LeaderWorkerSet sets the three variables in each pod of the group.
  - --distributed-executor-backend
  - mp
  - --nnodes
  - $(LWS_GROUP_SIZE)
  - --node-rank
  - $(LWS_WORKER_INDEX)
  - --master-addr
  - $(LWS_LEADER_ADDRESS)
  {{- end }}
env:
  - name: VLLM_API_KEY
    valueFrom:
      secretKeyRef:
        name: {{ .Values.existingSecret }}
        key: ENGINE_API_KEY
        optional: true
  - name: VLLM_NO_USAGE_STATS
    value: "1"
  - name: HF_HUB_OFFLINE
    value: "1"
  # What it compiles lies in the pod's own folder; the user has no entry in the image.
  - name: HOME
    value: /cache
  - name: USER
    value: headrace
  {{- if .Values.engine.server.multiNode.enabled }}
  # Where the others find this one.
  - name: VLLM_HOST_IP
    valueFrom:
      fieldRef:
        fieldPath: status.podIP
  {{- end }}
resources:
  {{- toYaml .Values.engine.server.resources | nindent 2 }}
securityContext:
  {{- include "headrace.confined" . | nindent 2 }}
volumeMounts:
  - name: tmp
    mountPath: /tmp
  - name: cache
    mountPath: /cache
  - name: shm
    mountPath: /dev/shm
  - name: models
    mountPath: /models
    readOnly: true
{{- end }}

{{- define "headrace.vllm.answers" -}}
ports:
  - name: http
    containerPort: 8000
# It reads the weights and compiles: half an hour at most.
startupProbe:
  httpGet:
    path: /health
    port: http
  periodSeconds: 10
  failureThreshold: 180
readinessProbe:
  httpGet:
    path: /health
    port: http
  timeoutSeconds: 5
# It fails once the engine is dead.
livenessProbe:
  httpGet:
    path: /health
    port: http
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 6
{{- end }}

{{- define "headrace.vllm.place" -}}
nodeSelector:
  {{- toYaml .Values.engine.server.nodeSelector | nindent 2 }}
tolerations:
  {{- toYaml .Values.engine.server.tolerations | nindent 2 }}
affinity:
  {{- toYaml .Values.engine.server.affinity | nindent 2 }}
{{- end }}

{{- define "headrace.vllm.volumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: 4Gi
- name: cache
  emptyDir:
    sizeLimit: 16Gi
# Between the processes of the tensor parallel ranks.
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ .Values.engine.server.shm }}
- name: models
  persistentVolumeClaim:
    claimName: {{ .Values.engine.modelsClaim }}
    readOnly: true
{{- end }}
