package probe

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const (
	// lookEvery is how often the pods are looked at.
	lookEvery = 500 * time.Millisecond
	// sureAfter is how long a connection must stay refused: a client dials each second.
	sureAfter = 3 * time.Second
	// staleAfter is how old a namespace is that a killed probe left.
	staleAfter = 30 * time.Minute
)

// errLate says that something did not happen in time.
var errLate = errors.New("it took too long")

// until looks until done, or the step's time is over.
func (r *run) until(ctx context.Context, done func(context.Context) (bool, error)) error {
	timeout := time.NewTimer(r.Timeout)
	defer timeout.Stop()
	for {
		if ok, err := done(ctx); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timeout.C:
			return errLate
		case <-time.After(lookEvery):
		}
	}
}

// sweep removes what a killed probe left.
func (r *run) sweep(ctx context.Context) error {
	all, err := r.api.namespaces(ctx)
	if err != nil {
		return err
	}
	for i := range all {
		if n := &all[i]; time.Since(n.CreationTimestamp.Time) > staleAfter && n.DeletionTimestamp == nil {
			r.Say("removes the namespace %s, which an earlier probe left", n.Name)
			if err := r.api.removeNamespace(ctx, n.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// populate makes the namespace and its pods, and waits until the clients talk.
func (r *run) populate(ctx context.Context) error {
	// It is named before it is made: an interrupted request may have made it.
	r.namespace = fmt.Sprintf("flowaudit-probe-%08x", rand.Uint32())
	if err := r.api.makeNamespace(ctx, r.namespace); err != nil {
		return err
	}
	r.Say("made the namespace %s", r.namespace)
	for i, n := range r.nodes {
		if err := r.api.makePod(ctx, r.namespace, serverPod(fmt.Sprintf("server-%d", i), n, r.Image)); err != nil {
			return err
		}
	}
	addresses, err := r.servers(ctx)
	if err != nil {
		return err
	}
	for _, p := range r.pairs {
		if err := r.api.makePod(ctx, r.namespace, clientPod(p.pod, p.client, r.Image, addresses[p.server])); err != nil {
			return err
		}
	}
	r.Say("waits until the clients reach their servers")
	if err := r.clients(ctx); err != nil {
		return err
	}
	for _, p := range r.pairs {
		if !p.talks {
			r.results = append(r.results, Result{Client: p.client, Server: p.server, State: Unreachable})
		}
	}
	return nil
}

// servers waits until each node's server runs, and gives their addresses.
func (r *run) servers(ctx context.Context) (map[string]string, error) {
	addresses := make(map[string]string)
	var missing []string
	err := r.until(ctx, func(ctx context.Context) (bool, error) {
		pods, err := r.api.pods(ctx, r.namespace)
		missing = nil
		for i := range pods {
			if p := &pods[i]; p.Status.Phase == corev1.PodRunning && p.Status.PodIP != "" {
				addresses[p.Spec.NodeName] = p.Status.PodIP
			} else {
				missing = append(missing, p.Spec.NodeName+": "+waitsFor(p))
			}
		}
		return len(addresses) == len(r.nodes), err
	})
	if errors.Is(err, errLate) {
		return nil, fmt.Errorf("probe: within %s not every server runs: %s: is the image %s within the nodes' reach?", r.Timeout, list(missing), r.Image)
	}
	return addresses, err
}

// clients waits until all clients talk, or the time is over.
func (r *run) clients(ctx context.Context) error {
	err := r.until(ctx, func(ctx context.Context) (bool, error) {
		talking, err := r.talking(ctx)
		all := true
		for _, p := range r.pairs {
			p.talks = talking[p.pod]
			all = all && p.talks
		}
		return all, err
	})
	if errors.Is(err, errLate) {
		return nil // which ones do not, the results say
	}
	return err
}

// talking are the clients whose last connection passed.
func (r *run) talking(ctx context.Context) (map[string]bool, error) {
	pods, err := r.api.pods(ctx, r.namespace)
	talks := make(map[string]bool)
	for i := range pods {
		talks[pods[i].Name] = slices.ContainsFunc(pods[i].Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		})
	}
	return talks, err
}

// try denies the traffic on one side, and sees what becomes of it.
func (r *run) try(ctx context.Context, side string) error {
	var pairs []*pair
	for _, p := range r.pairs {
		if p.talks {
			pairs = append(pairs, p)
		}
	}
	if len(pairs) == 0 {
		return nil
	}
	r.Say("denies %s", side)
	if err := r.api.makePolicy(ctx, r.namespace, denial(side)); err != nil {
		return err
	}
	refused, err := r.refused(ctx, pairs)
	if err != nil {
		return err
	}
	if err := r.api.removePolicy(ctx, r.namespace, denial(side).Name); err != nil {
		return err
	}
	if err := r.clients(ctx); err != nil {
		return err
	}
	for _, p := range pairs {
		result := Result{Client: p.client, Server: p.server, Side: side, Node: p.server, State: Unenforced}
		if side == Egress {
			result.Node = p.client
		}
		if after, ok := refused[p]; ok {
			result.State, result.AfterMillis = Enforced, after.Milliseconds()
			if !p.talks {
				result.State = Stuck
			}
		}
		r.results = append(r.results, result)
	}
	return nil
}

// refused waits until all pairs are refused for a while, and gives how long it
// took for each that is.
func (r *run) refused(ctx context.Context, pairs []*pair) (map[*pair]time.Duration, error) {
	began := time.Now()
	since := make(map[*pair]time.Duration)
	err := r.until(ctx, func(ctx context.Context) (bool, error) {
		talking, err := r.talking(ctx)
		if err != nil {
			return false, err
		}
		now, sure := time.Since(began), true
		for _, p := range pairs {
			first, known := since[p]
			switch {
			case talking[p.pod]:
				delete(since, p)
				sure = false
			case !known:
				since[p], sure = now, false
			default:
				sure = sure && now-first >= sureAfter
			}
		}
		return sure, nil
	})
	if errors.Is(err, errLate) {
		err = nil
	}
	return since, err
}

// remove removes the namespace with everything in it.
func (r *run) remove(ctx context.Context) error {
	if r.namespace == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, cleanupTime)
	defer cancel()
	r.Say("removes the namespace %s", r.namespace)
	err := r.api.removeNamespace(ctx, r.namespace)
	for err == nil {
		var there bool
		if there, err = r.api.hasNamespace(ctx, r.namespace); err != nil || !there {
			break
		}
		select {
		case <-ctx.Done():
			err = errLate
		case <-time.After(lookEvery):
		}
	}
	if err != nil {
		// Whoever was interrupted may show no error.
		r.Say("the namespace was left behind: kubectl delete namespace %s", r.namespace)
		return fmt.Errorf("probe: remove the namespace: %w", err)
	}
	return nil
}

// waitsFor says what a pod waits for.
func waitsFor(p *corev1.Pod) string {
	for _, c := range p.Status.ContainerStatuses {
		if w := c.State.Waiting; w != nil && w.Reason != "" {
			return w.Reason
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Status == corev1.ConditionFalse && c.Message != "" {
			return c.Message
		}
	}
	return string(p.Status.Phase)
}
