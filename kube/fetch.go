package kube

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/pager"
)

// FetchOptions say how Fetch reads.
type FetchOptions struct {
	Access    Access
	UserAgent string // says to the API server who asks
	// Progress, if not nil, is called with the count of objects read.
	Progress func(done int64)
}

// Fetch reads the cluster's objects once from its API server. It fails where
// namespaces, pods or NetworkPolicies cannot be had; what else cannot be had
// is said by the snapshot's Limits.
func Fetch(ctx context.Context, o FetchOptions) (*Snapshot, error) {
	config, err := o.Access.Config(o.UserAgent)
	if err != nil {
		return nil, err
	}
	server, err := newServer(config)
	if err != nil {
		return nil, err
	}
	f := &fetch{FetchOptions: o, server: server, snapshot: newSnapshot()}
	if err := f.all(ctx); err != nil {
		return nil, o.Access.explain(err, config.Host)
	}
	f.snapshot.completeNamespaces()
	return f.snapshot, nil
}

// FetchCronJobs reads the cluster's CronJobs once from its API server.
func FetchCronJobs(ctx context.Context, o FetchOptions) ([]*batchv1.CronJob, error) {
	config, err := o.Access.Config(o.UserAgent)
	if err != nil {
		return nil, err
	}
	server, err := newServer(config)
	if err != nil {
		return nil, err
	}
	f := &fetch{FetchOptions: o, server: server, snapshot: newSnapshot()}
	if err := f.list(ctx, cronJobs()); err != nil {
		return nil, o.Access.explain(err, config.Host)
	}
	return f.snapshot.CronJobs, nil
}

func cronJobs() *wanted {
	return &wanted{kind{resource: group("batch", "cronjobs")}, func(s *Snapshot, o runtime.Object) {
		s.CronJobs = append(s.CronJobs, o.(*batchv1.CronJob))
	}, ""}
}

// fetch is a snapshot on its way.
type fetch struct {
	FetchOptions
	*server

	mu       sync.Mutex // of what is below
	snapshot *Snapshot
	done     int64
}

// wanted is a kind of object that Fetch reads.
type wanted struct {
	kind
	add func(*Snapshot, runtime.Object)
	// without says what follows where the kind cannot be had; empty if
	// nothing can be said without it.
	without string
}

func wantedKinds() []wanted {
	const owners = "pods are named by what owns them directly, such as a ReplicaSet"
	replicaSets, jobs := ownerKind(group("apps", "replicasets"), "ReplicaSet"), ownerKind(group("batch", "jobs"), "Job")
	return []wanted{
		{namespaceKind(), func(s *Snapshot, o runtime.Object) { s.Namespaces = append(s.Namespaces, o.(*corev1.Namespace)) }, ""},
		{podKind(), func(s *Snapshot, o runtime.Object) { s.Pods = append(s.Pods, withoutRest(o.(*corev1.Pod))) }, ""},
		{policyKind(), func(s *Snapshot, o runtime.Object) { s.Policies = append(s.Policies, o.(*networkingv1.NetworkPolicy)) }, ""},
		{nodeKind(), func(s *Snapshot, o runtime.Object) { s.Nodes = append(s.Nodes, o.(*corev1.Node)) }, "an address of a node counts as outside"},
		{serviceKind(), func(s *Snapshot, o runtime.Object) { s.Services = append(s.Services, o.(*corev1.Service)) }, "an address of a Service counts as outside"},
		{replicaSets, func(s *Snapshot, o runtime.Object) {
			m := o.(*metav1.PartialObjectMetadata)
			s.ReplicaSets = append(s.ReplicaSets, &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, OwnerReferences: m.OwnerReferences}})
		}, owners},
		{jobs, func(s *Snapshot, o runtime.Object) {
			m := o.(*metav1.PartialObjectMetadata)
			s.Jobs = append(s.Jobs, &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, OwnerReferences: m.OwnerReferences}})
		}, owners},
		{kind{resource: group("apps", "daemonsets")}, func(s *Snapshot, o runtime.Object) {
			s.DaemonSets = append(s.DaemonSets, o.(*appsv1.DaemonSet))
		}, "what enforces policies is told by pods only"},
	}
}

// withoutRest keeps of a pod what is asked for: whole ones of a large cluster
// take gigabytes.
func withoutRest(p *corev1.Pod) *corev1.Pod {
	slim := func(containers []corev1.Container) []corev1.Container {
		out := make([]corev1.Container, len(containers))
		for i, c := range containers {
			out[i] = corev1.Container{Name: c.Name, Args: c.Args, Ports: c.Ports, RestartPolicy: c.RestartPolicy}
		}
		return out
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: p.UID, Labels: p.Labels, OwnerReferences: p.OwnerReferences},
		Spec: corev1.PodSpec{
			NodeName: p.Spec.NodeName, HostNetwork: p.Spec.HostNetwork, InitContainers: slim(p.Spec.InitContainers), Containers: slim(p.Spec.Containers),
		},
		Status: corev1.PodStatus{Phase: p.Status.Phase, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs},
	}
}

const (
	fetchPage    = 500 // objects
	fetchAtATime = 4   // kinds
)

func (f *fetch) all(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchAtATime)
	for _, w := range wantedKinds() {
		g.Go(func() error {
			err := f.list(ctx, &w)
			if err == nil || w.without == "" || !apierrors.IsForbidden(err) {
				return err
			}
			f.limit(fmt.Sprintf("no permission to list %s: %s", w.name(), w.without))
			return nil
		})
	}
	g.Go(func() error {
		found, err := f.otherPolicies(ctx)
		if apierrors.IsForbidden(err) {
			f.limit("no permission to see which API groups there are: policies of other kinds are not looked for")
			return nil
		}
		if err != nil {
			return err
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.snapshot.OtherPolicies = found.policies
		return nil
	})
	return g.Wait()
}

func (f *fetch) limit(text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.snapshot.Limits = append(f.snapshot.Limits, text)
}

func (f *fetch) list(ctx context.Context, w *wanted) error {
	source, err := f.source(w.kind)
	if err != nil {
		return fmt.Errorf("make a client of %s: %w", w.name(), err)
	}
	pages := pager.New(source.List)
	pages.PageSize = fetchPage
	err = pages.EachListItem(ctx, metav1.ListOptions{}, func(o runtime.Object) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		w.add(f.snapshot, o)
		if f.done++; f.Progress != nil {
			f.Progress(f.done)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list %s: %w", w.name(), err)
	}
	return nil
}

// explain says what can be done where an API server does not answer.
func (a *Access) explain(err error, host string) error {
	var status apierrors.APIStatus
	switch {
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("%w: %s does not accept the credentials of %s", err, host, a)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%w: the ClusterRole in deploy/rbac/reader.yaml has what is needed; or give the objects by --manifests", err)
	case errors.As(err, &status), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	}
	return fmt.Errorf("%w: is %s up, and does %s mean the right cluster?", err, host, a)
}
