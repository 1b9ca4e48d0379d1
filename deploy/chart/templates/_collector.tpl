{{/* The collector's pod, of the StatefulSet or the Deployment. */}}
{{- define "flowaudit.collectorPod" -}}
{{- $collector := dict "root" . "component" "collector" -}}
metadata:
  labels: {{- include "flowaudit.labels" $collector | nindent 4 }}
spec:
  serviceAccountName: flowaudit-collector
  priorityClassName: {{ .Values.collector.priorityClassName | quote }}
  terminationGracePeriodSeconds: 30
  {{- with .Values.image.pullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.collector.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.collector.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: {type: RuntimeDefault}
  containers:
    - name: collector
      image: {{ include "flowaudit.image" $collector }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args:
        - --listen=:4245
        {{- if .Values.collector.http }}
        - --listen-http=:4246
        {{- end }}
        - --cluster={{ .Values.cluster }}
        - --in-cluster
        - --tls-cert=/tls/tls.crt
        - --tls-key=/tls/tls.key
        - --tls-client-ca=/tls/ca.crt
        - --agent-proof=token
        - --agent-audience=flowaudit-collector
        - --agent-account={{ .Release.Namespace }}/flowaudit-agent
        {{- with .Values.readers }}
        - --reader-proof=token{{ if .oidc.issuer }},oidc{{ end }}
        - {{ printf "--reader-right=%s" .right | quote }}
        - {{ printf "--alert-right=%s" .alertRight | quote }}
        {{- if .oidc.issuer }}
        - --oidc-issuer={{ .oidc.issuer }}
        - --oidc-client-id={{ .oidc.clientID }}
        - --oidc-username-claim={{ .oidc.usernameClaim }}
        - --oidc-groups-claim={{ .oidc.groupsClaim }}
        - {{ printf "--oidc-prefix=%s" .oidc.prefix | quote }}
        {{- end }}
        {{- end }}
        - --retain={{ .Values.collector.retain }}
        - --retain-denied={{ .Values.collector.retainDenied }}
        - --retain-edges={{ .Values.collector.retainEdges }}
        {{- if eq .Values.store.kind "duckdb" }}
        - --data=/var/lib/flowaudit
        - --retain-size={{ .Values.store.retainSize }}
        - --store-memory={{ .Values.store.memory }}
        {{- end }}
        {{- range .Values.alerts.alertmanagers }}
        - --alertmanager={{ . }}
        {{- end }}
        {{- if .Values.alerts.config }}
        - --alert-config=/alerts/alerts.yaml
        {{- end }}
        {{- if .Values.evidence.secret }}
        - --evidence-key=/evidence/evidence.key
        {{- end }}
        - --listen-metrics=:9464
        - --log-level={{ .Values.collector.logLevel }}
        - --log-format={{ .Values.collector.logFormat }}
        {{- range .Values.collector.args }}
        - {{ . | quote }}
        {{- end }}
      env:
        # So that the CLI in this image asks this collector, with --tls-ca /tls/ca.crt and a reader's --token-file.
        - {name: FLOWAUDIT_SERVER, value: "localhost:4245"}
        {{- if eq .Values.store.kind "clickhouse" }}
        - name: FLOWAUDIT_STORE
          valueFrom: {secretKeyRef: {name: {{ .Values.store.clickhouseSecret }}, key: url}}
        {{- end }}
      ports:
        - {name: grpc, containerPort: 4245}
        {{- if .Values.collector.http }}
        - {name: http, containerPort: 4246}
        {{- end }}
        - {name: metrics, containerPort: 9464}
      startupProbe:
        httpGet: {path: /healthz, port: metrics}
        periodSeconds: 5
        failureThreshold: 60 # a large store takes a while to open
      livenessProbe:
        httpGet: {path: /healthz, port: metrics}
        periodSeconds: 20
      readinessProbe:
        httpGet: {path: /readyz, port: metrics}
        periodSeconds: 10
        timeoutSeconds: 6
      resources: {{- toYaml .Values.collector.resources | nindent 8 }}
      securityContext:
        readOnlyRootFilesystem: true
        allowPrivilegeEscalation: false
        capabilities: {drop: [ALL]}
      volumeMounts:
        - {name: tls, mountPath: /tls, readOnly: true}
        - {name: tmp, mountPath: /tmp}
        {{- if .Values.evidence.secret }}
        - {name: evidence, mountPath: /evidence, readOnly: true}
        {{- end }}
        {{- if .Values.alerts.config }}
        - {name: alerts, mountPath: /alerts, readOnly: true}
        {{- end }}
        {{- if eq .Values.store.kind "duckdb" }}
        - {name: data, mountPath: /var/lib/flowaudit}
        {{- end }}
  volumes:
    - name: tls
      secret: {secretName: {{ .Values.tls.collectorSecret }}, defaultMode: 288} # 0440
    - name: tmp
      emptyDir: {}
    {{- if .Values.evidence.secret }}
    - name: evidence
      secret: {secretName: {{ .Values.evidence.secret }}, defaultMode: 288} # 0440
    {{- end }}
    {{- if .Values.alerts.config }}
    - name: alerts
      configMap: {name: flowaudit-alerts}
    {{- end }}
{{- end }}
