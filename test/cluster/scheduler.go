package cluster

import (
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// scheduler binds pods to nodes in turn, where a node selector or a
// DaemonSet's affinity does not say to which. Machines must be asked for.
type scheduler struct {
	p *plane

	mu    sync.Mutex
	nodes []*Node
	turn  int
}

// add makes a node one that pods can be bound to.
func (s *scheduler) add(n *Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nodes = append(s.nodes, n)
}

func (s *scheduler) bind(ctx context.Context, pod *corev1.Pod) error {
	node := s.choose(pod)
	if node == nil {
		return fmt.Errorf("bind pod %s/%s: no node is as it wants", pod.Namespace, pod.Name)
	}
	err := s.p.client.CoreV1().Pods(pod.Namespace).Bind(ctx, &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Name: pod.Name, UID: pod.UID},
		Target:     corev1.ObjectReference{Kind: "Node", Name: node.Name},
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) { // gone, or bound already
		return fmt.Errorf("bind pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

func (s *scheduler) choose(pod *corev1.Pod) *Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	var fit []*Node
	for _, n := range s.nodes {
		asked := n.machine == nil || len(pod.Spec.NodeSelector) > 0 // a machine has few images
		if asked && (daemon(pod) || labels.SelectorFromSet(pod.Spec.NodeSelector).Matches(n.labels())) && named(pod.Spec.Affinity, n.Name) {
			fit = append(fit, n)
		}
	}
	if len(fit) == 0 {
		return nil
	}
	s.turn++
	return fit[s.turn%len(fit)]
}

// daemon tells whether a pod is a DaemonSet's: its controller has looked at the
// node's labels, which may be others than a node begins with.
func daemon(pod *corev1.Pod) bool {
	owner := metav1.GetControllerOf(pod)
	return owner != nil && owner.Kind == "DaemonSet"
}

// named tells whether a required affinity by node name, as the DaemonSet
// controller writes it, allows a node.
func named(a *corev1.Affinity, node string) bool {
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return true
	}
	for _, term := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		for _, f := range term.MatchFields {
			if f.Key == metav1.ObjectNameField && f.Operator == corev1.NodeSelectorOpIn && len(f.Values) == 1 && f.Values[0] == node {
				return true
			}
		}
	}
	return false
}
