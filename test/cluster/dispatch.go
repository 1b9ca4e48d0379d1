package cluster

import (
	"context"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

// dispatcher watches pods, and hands them to the scheduler and to their nodes.
type dispatcher struct {
	scheduler *scheduler
	kubelets  map[string]*kubelet // by node name
	progress  io.Writer

	factory informers.SharedInformerFactory
	pods    corelisters.PodLister
	queues  map[string]workqueue.TypedRateLimitingInterface[podRef] // by node name; "" is the scheduler's
}

// podRef is one pod, not its successor of the same name.
type podRef struct {
	types.NamespacedName
	uid types.UID
}

func newDispatcher(p *plane, nodes []*Node, progress io.Writer) *dispatcher {
	d := &dispatcher{
		scheduler: &scheduler{p: p}, kubelets: make(map[string]*kubelet), progress: progress,
		factory: informers.NewSharedInformerFactoryWithOptions(p.client, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.LabelSelector = "!" + Unmanaged
		})),
		queues: map[string]workqueue.TypedRateLimitingInterface[podRef]{"": newQueue()},
	}
	for _, n := range nodes {
		d.scheduler.add(n)
		d.kubelets[n.Name] = &kubelet{node: n, p: p, pods: make(map[types.UID]*Pod)}
		d.queues[n.Name] = newQueue()
	}
	return d
}

func newQueue() workqueue.TypedRateLimitingInterface[podRef] {
	return workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[podRef](20*time.Millisecond, time.Second))
}

// start returns when the pods that exist are known. Workers run until the
// context ends; wait for them with the function that is returned.
func (d *dispatcher) start(ctx context.Context) (wait func() error, err error) {
	informer := d.factory.Core().V1().Pods()
	d.pods = informer.Lister()
	if _, err := informer.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    d.enqueue,
		UpdateFunc: func(_, pod any) { d.enqueue(pod) },
		DeleteFunc: d.enqueue,
	}); err != nil {
		return nil, fmt.Errorf("watch pods: %w", err)
	}
	d.factory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), informer.Informer().HasSynced) {
		return nil, fmt.Errorf("list pods: %w", context.Cause(ctx))
	}
	var workers errgroup.Group
	for name, q := range d.queues {
		context.AfterFunc(ctx, q.ShutDown)
		workers.Go(func() error { d.work(ctx, name, q); return nil })
	}
	return func() error { d.factory.Shutdown(); return workers.Wait() }, nil
}

func (d *dispatcher) enqueue(object any) {
	if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = gone.Obj
	}
	pod := object.(*corev1.Pod)
	if q := d.queues[pod.Spec.NodeName]; q != nil {
		q.Add(podRef{types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}, pod.UID})
	}
}

func (d *dispatcher) work(ctx context.Context, node string, q workqueue.TypedRateLimitingInterface[podRef]) {
	for {
		ref, shutdown := q.Get()
		if shutdown {
			return
		}
		if err := d.handle(ctx, node, ref); err == nil {
			q.Forget(ref)
		} else if ctx.Err() == nil {
			if q.NumRequeues(ref) == 10 {
				fmt.Fprintf(d.progress, "pod %s: %v\n", ref, err)
			}
			q.AddRateLimited(ref)
		}
		q.Done(ref)
	}
}

func (d *dispatcher) handle(ctx context.Context, node string, ref podRef) error {
	pod, err := d.pods.Pods(ref.Namespace).Get(ref.Name)
	if apierrors.IsNotFound(err) || err == nil && pod.UID != ref.uid {
		pod = nil
	} else if err != nil {
		return err
	}
	if node != "" {
		return d.kubelets[node].sync(ctx, ref.uid, pod)
	}
	if pod == nil || pod.Spec.NodeName != "" {
		return nil
	}
	return d.scheduler.bind(ctx, pod)
}
