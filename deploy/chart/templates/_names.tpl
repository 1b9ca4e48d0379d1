{{/* Labels of everything; the argument is a dict of root and component. */}}
{{- define "flowaudit.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
app.kubernetes.io/name: flowaudit
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "flowaudit.selector" -}}
app.kubernetes.io/name: flowaudit
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "flowaudit.image" -}}
{{ .root.Values.image.repository }}/flowaudit-{{ .component }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{/* The names that the collector's certificate is for. */}}
{{- define "flowaudit.dnsNames" -}}
{{- $n := .Release.Namespace -}}
["flowaudit-collector", "flowaudit-collector.{{ $n }}", "flowaudit-collector.{{ $n }}.svc", "flowaudit-collector.{{ $n }}.svc.cluster.local", "localhost"]
{{- end }}

{{/* What each network plugin's sources need: flags, directories of the node, and whether root must read them. */}}
{{- define "flowaudit.sources" -}}
auto: {args: [--source=auto], mounts: [], root: false}
tap: {args: [--tap], mounts: [], root: false}
kube-router: {args: [--source=tap, --source=kube-router], mounts: [], root: false}
k3s: {args: [--source=tap, --source=k3s], mounts: [], root: false}
calico: {args: [--source=tap, --source=felix], mounts: [/var/run/calico], root: true, writes: true}
calico-ebpf: {args: [--source=felix], mounts: [/var/run/calico], root: true, writes: true}
cilium: {args: [--source=hubble], mounts: [/var/run/cilium], root: true}
weave: {args: [--source=tap, --source=weave], mounts: [/var/log/containers, /var/log/pods], root: true}
kube-network-policies: {args: [--source=tap, --source=kube-network-policies], mounts: [/var/log/containers, /var/log/pods], root: true}
antrea: {args: [--source=antrea], mounts: [/var/log/antrea], root: true}
ovn-kubernetes: {args: [--source=ovn], mounts: [/var/log/ovn], root: true}
gke: {args: [--source=gke], mounts: [/var/log/network], root: true}
aws: {args: [--source=aws], mounts: [/var/log/aws-routed-eni], root: true}
{{- end }}
