package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/clientcmd/api"
)

// patience bounds what the cluster must do by itself. After a long absence of
// the API server the watches of this program, too, come back a minute later.
const patience = 2 * time.Minute

// until tries something until it works.
func until(ctx context.Context, what string, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, err)
		}
	}
}

// NamespaceReady waits until pods can be made in a namespace.
func (c *Cluster) NamespaceReady(ctx context.Context, name string) error {
	return until(ctx, "the service account of namespace "+name, func(ctx context.Context) error {
		_, err := c.Client.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

// Running waits until exactly n pods of a namespace that a label selector
// selects are ready, and no other is still ending.
func (c *Cluster) Running(ctx context.Context, namespace, selector string, n int) ([]*corev1.Pod, error) {
	s, err := labels.Parse(selector)
	if err != nil {
		return nil, fmt.Errorf("select pods: %w", err)
	}
	var found []*corev1.Pod
	err = until(ctx, fmt.Sprintf("%d pods %s of namespace %s", n, selector, namespace), func(context.Context) error {
		if found, err = c.dispatch.pods.Pods(namespace).List(s); err != nil {
			return err
		}
		for _, pod := range found {
			if pod.DeletionTimestamp != nil || !ready(pod) {
				return fmt.Errorf("pod %s is not ready", pod.Name)
			}
		}
		if len(found) != n {
			return fmt.Errorf("there are %d", len(found))
		}
		return nil
	})
	return found, err
}

func ready(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// Pods waits as Running does, for pods that are network namespaces.
func (c *Cluster) Pods(ctx context.Context, namespace, selector string, n int) ([]*Pod, error) {
	running, err := c.Running(ctx, namespace, selector, n)
	if err != nil {
		return nil, err
	}
	var pods []*Pod
	for _, pod := range running {
		k := c.dispatch.kubelets[pod.Spec.NodeName]
		if k == nil {
			return nil, fmt.Errorf("pod %s/%s is on %s, where pods are containers", namespace, pod.Name, pod.Spec.NodeName)
		}
		p := k.get(pod.UID)
		if p == nil {
			return nil, fmt.Errorf("pod %s/%s has ended", namespace, pod.Name)
		}
		pods = append(pods, p)
	}
	return pods, nil
}

// Gone waits until a pod has ended and its successor, if any, may be looked for.
func (c *Cluster) Gone(ctx context.Context, p *Pod) error {
	return until(ctx, fmt.Sprintf("the end of pod %s", p.Key), func(context.Context) error {
		pod, err := c.dispatch.pods.Pods(p.Key.Namespace).Get(p.Key.Name)
		switch {
		case apierrors.IsNotFound(err), err == nil && pod.UID != p.UID:
			return nil
		case err != nil:
			return err
		}
		return errors.New("it is there")
	})
}

// ServiceReady waits until every node leads connections to a Service's n
// addresses, on all of its ports, to pods.
func (c *Cluster) ServiceReady(ctx context.Context, namespace, name string, n int) error {
	return until(ctx, fmt.Sprintf("the Service %s/%s", namespace, name), func(ctx context.Context) error {
		list, err := c.Client.DiscoveryV1().EndpointSlices(namespace).List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + name})
		if err != nil {
			return err
		}
		var backends []netip.AddrPort
		addrs := make(map[netip.Addr]bool)
		for _, s := range list.Items {
			for _, e := range s.Endpoints {
				addr, err := netip.ParseAddr(e.Addresses[0])
				if err != nil {
					return err
				}
				addrs[addr] = true
				for _, p := range s.Ports {
					backends = append(backends, netip.AddrPortFrom(addr, uint16(*p.Port)))
				}
			}
		}
		if len(addrs) != n {
			return fmt.Errorf("it has %d endpoints, want %d", len(addrs), n)
		}
		for _, node := range c.all() {
			if done, err := node.programmed(ctx, c.options.ProxyMode, backends); err != nil || !done {
				return errors.Join(err, fmt.Errorf("kube-proxy on %s has not programmed it", node.Name))
			}
		}
		return nil
	})
}

// Kubeconfig writes a kubeconfig with a token of a service account, which may
// do what that account's roles say and nothing more.
func (c *Cluster) Kubeconfig(ctx context.Context, namespace, account string) (string, error) {
	hours := int64(24 * 3600)
	token, err := c.Client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, account, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &hours},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("get a token for service account %s/%s: %w", namespace, account, err)
	}
	return c.plane.authority.kubeconfig(account, &api.AuthInfo{Token: token.Status.Token})
}
