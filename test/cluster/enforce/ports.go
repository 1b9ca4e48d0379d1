package enforce

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// named tells whether a port is given by name.
func named(ports []networkingv1.NetworkPolicyPort) bool {
	return slices.ContainsFunc(ports, func(p networkingv1.NetworkPolicyPort) bool { return p.Port != nil && p.Port.Type == intstr.String })
}

// portMatches are the ports that a rule lets in; names are those of the
// target's containers. No ports are all ports.
func portMatches(ports []networkingv1.NetworkPolicyPort, target *corev1.Pod) []string {
	if len(ports) == 0 {
		return []string{""}
	}
	var matches []string
	for _, p := range ports {
		protocol := corev1.ProtocolTCP
		if p.Protocol != nil {
			protocol = *p.Protocol
		}
		word := strings.ToLower(string(protocol))
		switch {
		case p.Port == nil:
			matches = append(matches, "meta l4proto "+word)
		case p.Port.Type == intstr.String:
			for _, number := range numbers(target, p.Port.StrVal, protocol) {
				matches = append(matches, fmt.Sprintf("%s dport %d", word, number))
			}
		case p.EndPort != nil:
			matches = append(matches, fmt.Sprintf("%s dport %d-%d", word, p.Port.IntVal, *p.EndPort))
		default:
			matches = append(matches, fmt.Sprintf("%s dport %d", word, p.Port.IntVal))
		}
	}
	return matches
}

// numbers are the ports of a pod with a name.
func numbers(pod *corev1.Pod, name string, protocol corev1.Protocol) []int32 {
	if pod == nil {
		return nil
	}
	var found []int32
	for _, c := range pod.Spec.Containers {
		for _, p := range c.Ports {
			if p.Name == name && p.Protocol == protocol {
				found = append(found, p.ContainerPort)
			}
		}
	}
	return found
}
