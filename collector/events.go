package collector

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	networkingv1 "k8s.io/client-go/kubernetes/typed/networking/v1"
	"k8s.io/client-go/rest"

	"github.com/flowaudit/flowaudit/collector/alert"
)

// events tells of alerts as Kubernetes Events on the pods and the policies, so
// that "kubectl describe" shows them.
type events struct {
	core       typedcorev1.CoreV1Interface
	networking networkingv1.NetworkingV1Interface
	instance   string
}

func newEvents(config *rest.Config, instance string) (*events, error) {
	core, err := typedcorev1.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make a client of events: %w", err)
	}
	networking, err := networkingv1.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make a client of network policies: %w", err)
	}
	return &events{core, networking, instance}, nil
}

// Batch implements notify.Sender.
func (*events) Batch() int { return 1 }

// Send implements notify.Sender. An event says that something happened: that it
// is over is none.
func (e *events) Send(ctx context.Context, alerts []alert.Alert) error {
	for i := range alerts {
		a := &alerts[i]
		if a.State != alert.Firing {
			continue
		}
		objects, err := e.about(ctx, a)
		if err != nil {
			return err
		}
		for _, o := range objects {
			_, err := e.core.Events(o.Namespace).Create(ctx, eventOf(a, o, e.instance), metav1.CreateOptions{})
			switch {
			case err == nil, apierrors.IsAlreadyExists(err): // an earlier try
			case apierrors.IsNotFound(err), apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
				// The namespace is gone: nobody will look for the event.
			default:
				return fmt.Errorf("create event on %s %s/%s: %w", o.Kind, o.Namespace, o.Name, err)
			}
		}
	}
	return nil
}

// about are the objects that an alert concerns and that are still there.
func (e *events) about(ctx context.Context, a *alert.Alert) ([]corev1.ObjectReference, error) {
	var out []corev1.ObjectReference
	for _, end := range []*alert.End{a.From, a.To} {
		if end == nil || end.Pod == "" {
			continue
		}
		list, err := e.core.Pods(end.Namespace).List(ctx, named(end.Pod))
		if err != nil {
			return nil, fmt.Errorf("find pod %s/%s: %w", end.Namespace, end.Pod, err)
		}
		for _, p := range list.Items {
			out = append(out, corev1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: p.Namespace, Name: p.Name, UID: p.UID})
		}
	}
	seen := make(map[string]bool)
	for _, p := range a.Policies {
		if name := p.Namespace + "/" + p.Name; p.Namespace == "" || p.Kind != "" && p.Kind != "NetworkPolicy" || seen[name] {
			continue
		}
		seen[p.Namespace+"/"+p.Name] = true
		list, err := e.networking.NetworkPolicies(p.Namespace).List(ctx, named(p.Name))
		if err != nil {
			return nil, fmt.Errorf("find network policy %s/%s: %w", p.Namespace, p.Name, err)
		}
		for _, o := range list.Items {
			out = append(out, corev1.ObjectReference{Kind: "NetworkPolicy", APIVersion: "networking.k8s.io/v1", Namespace: o.Namespace, Name: o.Name, UID: o.UID})
		}
	}
	return out, nil
}

func named(name string) metav1.ListOptions {
	return metav1.ListOptions{FieldSelector: "metadata.name=" + name, Limit: 1}
}

// maxEventMessage is what the API server takes.
const maxEventMessage = 1024

func eventOf(a *alert.Alert, o corev1.ObjectReference, instance string) *corev1.Event {
	message := a.Summary
	for _, more := range []string{a.Explanation, a.NearestMiss, a.Command} {
		if more != "" {
			message += "; " + more
		}
	}
	if len(message) > maxEventMessage {
		message = strings.ToValidUTF8(message[:maxEventMessage-3], "") + "…"
	}
	kind := corev1.EventTypeWarning
	if a.Severity == "info" {
		kind = corev1.EventTypeNormal
	}
	at := metav1.NewTime(a.Started)
	return &corev1.Event{
		// The same name for the same alert on the same object: a second try is none.
		ObjectMeta:     metav1.ObjectMeta{Namespace: o.Namespace, Name: fmt.Sprintf("%.40s.%s%x", strings.TrimRight(o.Name, "-."), a.ID, a.Started.Unix())},
		InvolvedObject: o, Reason: reasonOf(a.Rule), Message: message, Type: kind, Count: 1,
		FirstTimestamp: at, LastTimestamp: at, Source: corev1.EventSource{Component: "flowaudit-collector"},
		EventTime: metav1.NewMicroTime(a.Started), Action: "Alert", ReportingController: "flowaudit.io/collector", ReportingInstance: fmt.Sprintf("%.128s", instance),
	}
}

// reasonOf is a rule's name as reasons of events are written: FirstDenied.
func reasonOf(rule string) string {
	var b strings.Builder
	for _, part := range strings.FieldsFunc(rule, func(r rune) bool { return r == '-' || r == '_' || r == '.' || r == ' ' }) {
		b.WriteString(strings.ToUpper(part[:1]) + part[1:])
	}
	return b.String()
}
