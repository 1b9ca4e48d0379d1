package kube

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// document is one YAML document of a file.
type document struct {
	line int // where it begins, from 1
	text []byte
}

// documents splits a file at lines that begin with ---.
func documents(file []byte) []document {
	var out []document
	current := document{line: 1}
	flush := func() {
		if len(bytes.TrimSpace(current.text)) > 0 {
			out = append(out, current)
		}
	}
	for n, line := range bytes.SplitAfter(file, []byte("\n")) {
		if bytes.HasPrefix(line, []byte("---")) {
			flush()
			current = document{line: n + 2}
			continue
		}
		current.text = append(current.text, line...)
	}
	flush()
	return out
}

// decodeFile reads all documents of a file into o. What cannot be used is
// returned as problems that name file and line; the rest is kept.
func decodeFile(name string, file []byte, o *Objects) (problems []string) {
	for _, d := range documents(file) {
		problem := func(err error) {
			problems = append(problems, fmt.Sprintf("%s:%d: %v", name, d.line, err))
		}
		raw, err := yaml.YAMLToJSONStrict(d.text)
		if err != nil {
			problem(err)
			continue
		}
		if bytes.Equal(bytes.TrimSpace(raw), []byte("null")) {
			continue // comments only
		}
		decodeObject(raw, o, problem)
	}
	return problems
}

// decodeObject reads one object, or the items of a List.
func decodeObject(raw []byte, o *Objects, problem func(error)) {
	var meta struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        struct {
			Name      string `json:"name"`
			Namespace string `json:"namespace"`
		} `json:"metadata"`
		Items []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(raw, &meta); err != nil {
		problem(fmt.Errorf("is no Kubernetes object: %w", err))
		return
	}
	if strings.HasSuffix(meta.Kind, "List") {
		for i, item := range meta.Items {
			decodeObject(item, o, func(err error) { problem(fmt.Errorf("item %d: %w", i+1, err)) })
		}
		return
	}
	whose := meta.Kind
	if meta.Metadata.Name != "" {
		whose += " " + strings.TrimPrefix(meta.Metadata.Namespace+"/"+meta.Metadata.Name, "/")
	}
	var err error
	switch meta.APIVersion + " " + meta.Kind {
	case "v1 Namespace":
		o.Namespaces, err = keep(raw, o.Namespaces, func(*corev1.Namespace) {})
	case "v1 Node":
		o.Nodes, err = keep(raw, o.Nodes, func(*corev1.Node) {})
	case "v1 Pod":
		o.Pods, err = keep(raw, o.Pods, trimPod)
	case "v1 Service":
		o.Services, err = keep(raw, o.Services, func(s *corev1.Service) { s.Namespace = orDefault(s.Namespace) })
	case "networking.k8s.io/v1 NetworkPolicy":
		o.Policies, err = keep(raw, o.Policies, func(p *networkingv1.NetworkPolicy) { p.Namespace = orDefault(p.Namespace) })
	case "apps/v1 ReplicaSet":
		o.ReplicaSets, err = keep(raw, o.ReplicaSets, func(r *appsv1.ReplicaSet) { r.Namespace = orDefault(r.Namespace) })
	case "batch/v1 Job":
		o.Jobs, err = keep(raw, o.Jobs, func(j *batchv1.Job) { j.Namespace = orDefault(j.Namespace) })
	case "discovery.k8s.io/v1 EndpointSlice":
		o.EndpointSlices, err = keep(raw, o.EndpointSlices, func(s *discoveryv1.EndpointSlice) { s.Namespace = orDefault(s.Namespace) })
	case "apps/v1 Deployment", "apps/v1 StatefulSet", "apps/v1 DaemonSet", "batch/v1 CronJob":
		// They name nothing that pods and Services do not say themselves.
	default:
		err = fmt.Errorf("apiVersion %q, kind %q is not one that is used", meta.APIVersion, meta.Kind)
	}
	if err != nil {
		problem(fmt.Errorf("%s: %w", whose, err))
	}
}

// keep decodes an object strictly and appends it to list. An object without
// a name is refused: nothing could refer to it.
func keep[T any, P interface {
	*T
	metav1.Object
}](raw []byte, list []P, prepare func(P)) ([]P, error) {
	p := P(new(T))
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(p); err != nil {
		return list, err
	}
	if p.GetName() == "" {
		return list, fmt.Errorf("metadata.name is missing")
	}
	p.SetManagedFields(nil)
	prepare(p)
	return append(list, p), nil
}

// orDefault gives the namespace that kubectl would use.
func orDefault(namespace string) string {
	if namespace == "" {
		return metav1.NamespaceDefault
	}
	return namespace
}

// onlyPorts keeps of containers the ports that have names.
func onlyPorts(containers []corev1.Container) []corev1.Container {
	var out []corev1.Container
	for _, c := range containers {
		if len(c.Ports) > 0 {
			out = append(out, corev1.Container{Name: c.Name, Ports: c.Ports})
		}
	}
	return out
}

// trimPod keeps of a pod what names it.
func trimPod(p *corev1.Pod) {
	*p = corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: orDefault(p.Namespace), Name: p.Name, UID: p.UID, Labels: p.Labels, OwnerReferences: p.OwnerReferences,
		},
		Spec: corev1.PodSpec{
			NodeName: p.Spec.NodeName, HostNetwork: p.Spec.HostNetwork,
			InitContainers: onlyPorts(p.Spec.InitContainers), Containers: onlyPorts(p.Spec.Containers),
		},
		Status: corev1.PodStatus{Phase: p.Status.Phase, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs},
	}
}
