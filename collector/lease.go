package collector

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// Times of a lease, those of Kubernetes' own components.
const (
	leaseDuration = 15 * time.Second
	leaseRenew    = 10 * time.Second
	leaseRetry    = 2 * time.Second
)

// elect runs until ctx ends; lead is called with each change of who holds the lease.
func elect(ctx context.Context, config *rest.Config, lease, instance string, lead func(bool), log *slog.Logger) error {
	namespace, name, _ := strings.Cut(lease, "/")
	client, err := coordinationv1.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make a client of leases: %w", err)
	}
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Client: client,
			LockConfig: resourcelock.ResourceLockConfig{Identity: instance},
		},
		LeaseDuration: leaseDuration, RenewDeadline: leaseRenew, RetryPeriod: leaseRetry, ReleaseOnCancel: true, Name: lease,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) {
				log.Info("this collector tells of alerts from now on", "lease", lease)
				lead(true)
			},
			OnStoppedLeading: func() { lead(false) },
		},
	})
	if err != nil {
		return fmt.Errorf("take part in lease %s: %w", lease, err)
	}
	for ctx.Err() == nil {
		elector.Run(ctx) // ends when the lease is lost, too
	}
	return nil
}

// instanceName tells this process from every other collector.
func instanceName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "collector"
	}
	return fmt.Sprintf("%s-%d-%x", host, os.Getpid(), time.Now().UnixNano())
}
