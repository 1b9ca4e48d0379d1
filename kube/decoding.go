package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	sigsjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// decoding is one document on its way.
type decoding struct {
	source   *source
	problems []Problem
	found    []func(*Snapshot)
}

// yamlLine finds the line in an error of the YAML library.
var yamlLine = regexp.MustCompile(`(?:yaml: )?line (\d+): `)

func (d *decoding) document() {
	raw := bytes.TrimSpace(d.source.text)
	if !json.Valid(raw) { // of JSON the detour is spared
		var err error
		if raw, err = yaml.YAMLToJSONStrict(d.source.text); err != nil {
			d.broken(err)
			return
		}
	}
	if !bytes.Equal(bytes.TrimSpace(raw), []byte("null")) { // which is comments only
		d.object(raw, "", metav1.TypeMeta{})
	}
}

func (d *decoding) broken(err error) {
	text := err.Error()
	text = text[strings.LastIndex(text, "yaml: ")+len("yaml: "):]
	text = strings.TrimSpace(strings.TrimPrefix(text, "unmarshal errors:"))
	line := d.source.line
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		n, _ := strconv.Atoi(m[1]) // the pattern has digits only
		if strings.Contains(text, "did not find expected") {
			n++ // the library's parser counts from 0, its scanner from 1
		}
		// What is missing at the end is missing in the last line.
		line += min(n-1, bytes.Count(bytes.TrimRight(d.source.text, "\n"), []byte("\n")))
		text = strings.Replace(text, m[0], "", 1)
	}
	d.problems = append(d.problems, Problem{File: d.source.file, Line: line, Text: "is no YAML: " + text})
}

// object reads one object, or the items of a List; path is where it is. The
// items of a list of one kind, such as PodList, need not name their own.
func (d *decoding) object(raw []byte, path string, of metav1.TypeMeta) {
	var meta struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        struct {
			Name      string `json:"name"`
			Namespace string `json:"namespace"`
		} `json:"metadata"`
		Items []json.RawMessage `json:"items"`
	}
	at := place{source: d.source, path: path}
	if err := sigsjson.UnmarshalCaseSensitivePreserveInts(raw, &meta); err != nil {
		d.problem(at, "", fmt.Errorf("is no Kubernetes object: %w", err))
		return
	}
	if strings.HasSuffix(meta.Kind, "List") && meta.Items != nil {
		of = metav1.TypeMeta{APIVersion: meta.APIVersion, Kind: strings.TrimSuffix(meta.Kind, "List")}
		for i, item := range meta.Items {
			d.object(item, path+"items["+strconv.Itoa(i)+"].", of)
		}
		return
	}
	if meta.Kind == "" && meta.APIVersion == "" && of.Kind != "" {
		meta.TypeMeta = of
	}
	who := strings.TrimSpace(meta.Kind + " " + strings.TrimPrefix(meta.Metadata.Namespace+"/"+meta.Metadata.Name, "/"))
	if meta.Kind == "" || meta.APIVersion == "" {
		d.problem(at, who, errors.New("is no Kubernetes object: apiVersion or kind is missing"))
		return
	}
	d.kind(raw, at, meta.APIVersion, meta.Kind, who)
}

func (d *decoding) kind(raw []byte, at place, version, kind, who string) {
	switch version + " " + kind {
	case "v1 Namespace":
		read(d, raw, at, who, true, func(s *Snapshot, n *corev1.Namespace) { s.Namespaces = append(s.Namespaces, n) })
	case "v1 Node":
		read(d, raw, at, who, false, func(s *Snapshot, n *corev1.Node) { s.Nodes = append(s.Nodes, n) })
	case "v1 Pod":
		read(d, raw, at, who, false, func(s *Snapshot, p *corev1.Pod) { s.Pods = append(s.Pods, p) })
	case "v1 Service":
		read(d, raw, at, who, false, func(s *Snapshot, v *corev1.Service) { s.Services = append(s.Services, v) })
	case "networking.k8s.io/v1 NetworkPolicy":
		read(d, raw, at, who, true, func(s *Snapshot, p *networkingv1.NetworkPolicy) { s.Policies = append(s.Policies, p) })
	case "apps/v1 ReplicaSet":
		read(d, raw, at, who, false, func(s *Snapshot, r *appsv1.ReplicaSet) {
			s.ReplicaSets = append(s.ReplicaSets, r)
			s.template(kind, r, r.Spec.Template, r.Spec.Selector)
		})
	case "batch/v1 Job":
		read(d, raw, at, who, false, func(s *Snapshot, j *batchv1.Job) {
			s.Jobs = append(s.Jobs, j)
			if j.Status.CompletionTime == nil {
				s.template(kind, j, j.Spec.Template, j.Spec.Selector)
			}
		})
	case "apps/v1 Deployment":
		read(d, raw, at, who, false, func(s *Snapshot, w *appsv1.Deployment) { s.template(kind, w, w.Spec.Template, w.Spec.Selector) })
	case "apps/v1 StatefulSet":
		read(d, raw, at, who, false, func(s *Snapshot, w *appsv1.StatefulSet) { s.template(kind, w, w.Spec.Template, w.Spec.Selector) })
	case "apps/v1 DaemonSet":
		read(d, raw, at, who, false, func(s *Snapshot, w *appsv1.DaemonSet) {
			s.DaemonSets = append(s.DaemonSets, w)
			s.template(kind, w, w.Spec.Template, w.Spec.Selector)
		})
	case "batch/v1 CronJob":
		read(d, raw, at, who, false, func(s *Snapshot, w *batchv1.CronJob) {
			s.CronJobs = append(s.CronJobs, w)
			s.template(kind, w, w.Spec.JobTemplate.Spec.Template, nil)
		})
	case "extensions/v1beta1 NetworkPolicy":
		d.problem(place{source: at.source, path: at.path, field: "apiVersion"}, who, errors.New("is not served any more: write networking.k8s.io/v1"))
	default:
		if strings.HasSuffix(kind, "NetworkPolicy") {
			d.otherPolicy(raw, version, kind)
		}
	}
}

// otherPolicy keeps a policy that nothing here judges.
func (d *decoding) otherPolicy(raw []byte, version, kind string) {
	var o metav1.PartialObjectMetadata
	if json.Unmarshal(raw, &o) != nil {
		return // its name would say nothing
	}
	group, _, _ := strings.Cut(version, "/")
	p := OtherPolicy{Group: group, Kind: kind, Namespace: o.Namespace, Name: o.Name, Object: raw}
	if !slices.ContainsFunc(otherKinds(), func(k otherKind) bool { return k.kind == kind && k.group == group && k.wide }) {
		p.Namespace = orDefault(p.Namespace)
	}
	d.found = append(d.found, func(s *Snapshot) { s.OtherPolicies = append(s.OtherPolicies, p) })
}

// read decodes an object as the API server does. Of one that is strict every
// field must be known: a misspelt one would change what is meant.
func read[T any, P interface {
	*T
	metav1.Object
}](d *decoding, raw []byte, at place, who string, strict bool, add func(*Snapshot, P)) {
	p := P(new(T))
	unknown, err := sigsjson.UnmarshalStrict(raw, p)
	if err != nil {
		d.problem(at, who, err)
		return
	}
	if p.GetName() == "" {
		d.problem(place{source: at.source, path: at.path, field: "metadata"}, who, errors.New("metadata.name is missing"))
		return
	}
	if strict && len(unknown) > 0 {
		for _, err := range unknown {
			d.problem(at, who, err)
		}
		return
	}
	p.SetManagedFields(nil)
	_, isNode := any(p).(*corev1.Node)
	_, isNamespace := any(p).(*corev1.Namespace)
	if !isNode && !isNamespace {
		p.SetNamespace(orDefault(p.GetNamespace()))
	}
	kind, _, _ := strings.Cut(who, " ")
	d.found = append(d.found, func(s *Snapshot) {
		key := objectKey(kind, p.GetNamespace(), p.GetName())
		if before, twice := s.places[key]; twice {
			file, line := before.position("")
			d.problem(at, key, fmt.Errorf("is given twice, first in %s:%d", file, line))
			s.Problems = append(s.Problems, d.problems[len(d.problems)-1])
			return
		}
		s.places[key] = at
		add(s, p)
	})
}

func objectKey(kind, namespace, name string) string {
	if namespace == "" {
		return kind + " " + name
	}
	return kind + " " + namespace + "/" + name
}

// problem notes an error of an object with the line of the field that it names.
func (d *decoding) problem(at place, who string, err error) {
	p := Problem{Object: who, Field: at.field, Text: err.Error()}
	var field sigsjson.FieldError
	var mismatch *json.UnmarshalTypeError
	switch {
	case errors.As(err, &field):
		p.Field = field.FieldPath()
		p.Text = strings.TrimSuffix(p.Text, fmt.Sprintf(" %q", p.Field))
	case errors.As(err, &mismatch):
		var line int
		p.Field, line = at.mismatch(mismatch.Field, mismatch.Value)
		p.Text = fmt.Sprintf("%s where %s is wanted", article(mismatch.Value), article(goText(mismatch.Type.Kind().String())))
		p.File, p.Line = d.source.file, line
		d.problems = append(d.problems, p)
		return
	}
	p.File, p.Line = at.position(p.Field)
	d.problems = append(d.problems, p)
}

// goText names a kind of Go as YAML's users would.
func goText(kind string) string {
	switch {
	case kind == "slice" || kind == "array":
		return "list"
	case kind == "map" || kind == "struct" || kind == "ptr":
		return "object"
	case strings.HasPrefix(kind, "int") || strings.HasPrefix(kind, "uint") || strings.HasPrefix(kind, "float"):
		return "number"
	}
	return kind
}

func article(word string) string {
	if word == "array" {
		word = "list"
	}
	if strings.ContainsAny(word[:1], "aeio") {
		return "an " + word
	}
	return "a " + word
}
