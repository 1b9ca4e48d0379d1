package cluster

import (
	"context"
	"fmt"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// scheduler binds pods to nodes in turn, where a node selector or a
// DaemonSet's affinity does not say to which.
type scheduler struct {
	p     *plane
	nodes []*Node
	turn  atomic.Uint32
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
	first := s.turn.Add(1)
	for i := range s.nodes {
		n := s.nodes[(int(first)+i)%len(s.nodes)]
		fits := labels.SelectorFromSet(pod.Spec.NodeSelector).Matches(labels.Set{corev1.LabelHostname: n.Name})
		if fits && named(pod.Spec.Affinity, n.Name) {
			return n
		}
	}
	return nil
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
