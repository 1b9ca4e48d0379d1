package probe

import (
	"context"
	"fmt"
	"net"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

const (
	// mark is the label of everything that a probe makes.
	mark = "app.kubernetes.io/managed-by"
	made = "flowaudit-probe"
	role = "flowaudit.io/role"
	port = 8080
	// lifetime ends the pods of a probe that was killed.
	lifetime = 1800 // seconds
)

// serverPod serves TCP.
func serverPod(name, node, image string) *corev1.Pod {
	p := pod(name, node, image, "server", "netexec", "--http-port="+strconv.Itoa(port), "--udp-port=-1")
	p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: port}}
	return p
}

// clientPod dials a server once a second, as its readiness probe: the kubelet
// runs that inside of the pod, so that the pod is ready while it can talk.
func clientPod(name, node, image, server string) *corev1.Pod {
	p := pod(name, node, image, "client", "pause")
	p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{
		ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{
			"/agnhost", "connect", "--timeout=1s", net.JoinHostPort(server, strconv.Itoa(port)),
		}}},
		PeriodSeconds: 1, TimeoutSeconds: 5, FailureThreshold: 1, SuccessThreshold: 1,
	}
	return p
}

// pod meets the restricted Pod Security Standard.
func pod(name, node, image, does string, args ...string) *corev1.Pod {
	no, yes, seconds, now, user := false, true, int64(lifetime), int64(1), int64(65532)
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{mark: made, role: does}},
		Spec: corev1.PodSpec{
			NodeName: node, RestartPolicy: corev1.RestartPolicyAlways, ActiveDeadlineSeconds: &seconds, TerminationGracePeriodSeconds: &now,
			AutomountServiceAccountToken: &no, EnableServiceLinks: &no,
			SecurityContext: &corev1.PodSecurityContext{RunAsNonRoot: &yes, RunAsUser: &user, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
			Containers: []corev1.Container{{
				Name: does, Image: image, Args: args,
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
			}},
		},
	}
}

// denial denies everything on one side.
func denial(side string) *networkingv1.NetworkPolicy {
	selected, kind := "server", networkingv1.PolicyTypeIngress
	if side == Egress {
		selected, kind = "client", networkingv1.PolicyTypeEgress
	}
	return &networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
		ObjectMeta: metav1.ObjectMeta{Name: "deny-" + side, Labels: map[string]string{mark: made}},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{role: selected}}, PolicyTypes: []networkingv1.PolicyType{kind},
		},
	}
}

// api is what is asked of the API server.
type api struct {
	core, networking rest.Interface
}

func (a api) nodes(ctx context.Context) ([]corev1.Node, error) {
	var all corev1.NodeList
	err := a.core.Get().Resource("nodes").Do(ctx).Into(&all)
	return all.Items, told("list nodes", err)
}

// namespaces are those of probes.
func (a api) namespaces(ctx context.Context) ([]corev1.Namespace, error) {
	var all corev1.NamespaceList
	err := a.core.Get().Resource("namespaces").Param("labelSelector", mark+"="+made).Do(ctx).Into(&all)
	return all.Items, told("list namespaces", err)
}

func (a api) makeNamespace(ctx context.Context, name string) error {
	ns := &corev1.Namespace{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{mark: made}},
	}
	return told("create namespace "+name, a.core.Post().Resource("namespaces").Body(ns).Do(ctx).Error())
}

func (a api) hasNamespace(ctx context.Context, name string) (bool, error) {
	err := a.core.Get().Resource("namespaces").Name(name).Do(ctx).Error()
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return true, told("get namespace "+name, err)
}

func (a api) removeNamespace(ctx context.Context, name string) error {
	err := a.core.Delete().Resource("namespaces").Name(name).Do(ctx).Error()
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // gone, or going
		return nil
	}
	return told("delete namespace "+name, err)
}

func (a api) makePod(ctx context.Context, namespace string, p *corev1.Pod) error {
	return told("create pod "+p.Name, a.core.Post().Namespace(namespace).Resource("pods").Body(p).Do(ctx).Error())
}

func (a api) pods(ctx context.Context, namespace string) ([]corev1.Pod, error) {
	var all corev1.PodList
	err := a.core.Get().Namespace(namespace).Resource("pods").Do(ctx).Into(&all)
	return all.Items, told("list pods", err)
}

func (a api) makePolicy(ctx context.Context, namespace string, p *networkingv1.NetworkPolicy) error {
	return told("create NetworkPolicy "+p.Name, a.networking.Post().Namespace(namespace).Resource("networkpolicies").Body(p).Do(ctx).Error())
}

func (a api) removePolicy(ctx context.Context, namespace, name string) error {
	return told("delete NetworkPolicy "+name, a.networking.Delete().Namespace(namespace).Resource("networkpolicies").Name(name).Do(ctx).Error())
}

// told says what failed, and what a missing right is.
func told(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case apierrors.IsForbidden(err):
		return fmt.Errorf("probe: %s: %w: a probe needs the rights to list nodes, and to make and remove namespaces, pods and NetworkPolicies", what, err)
	}
	return fmt.Errorf("probe: %s: %w", what, err)
}
