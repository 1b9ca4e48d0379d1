package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// policyGroups have kinds of policy that may decide beside NetworkPolicy.
func policyGroups() []string {
	return []string{
		"policy.networking.k8s.io", "projectcalico.org", "crd.projectcalico.org", "cilium.io", "crd.antrea.io", "k8s.ovn.org",
	}
}

const (
	discoverEvery = 10 * time.Minute
	discoverRetry = 15 * time.Second
)

// discover looks which other kinds of policy the cluster has. Every
// authenticated user may ask for that.
func (w *Watch) discover(ctx context.Context) error {
	for {
		next := discoverEvery
		kinds, err := w.policyKinds(ctx)
		if err != nil {
			next = discoverRetry
		} else {
			w.mu.Lock()
			w.other = kinds
			w.mu.Unlock()
		}
		select {
		case <-time.After(next):
		case <-ctx.Done():
			return nil
		}
	}
}

func (w *Watch) policyKinds(ctx context.Context) ([]string, error) {
	var groups metav1.APIGroupList
	if err := w.read(ctx, "/apis", &groups); err != nil {
		return nil, err
	}
	var out []string
	for _, g := range groups.Groups {
		if !slices.Contains(policyGroups(), g.Name) {
			continue
		}
		var resources metav1.APIResourceList
		if err := w.read(ctx, "/apis/"+g.PreferredVersion.GroupVersion, &resources); err != nil {
			return nil, err
		}
		for _, r := range resources.APIResources {
			if name := r.Kind + "." + g.Name; strings.HasSuffix(r.Kind, "NetworkPolicy") && !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	slices.Sort(out)
	return out, nil
}

func (w *Watch) read(ctx context.Context, path string, into any) error {
	client, err := w.restClient(schema.GroupVersion{Version: "v1"})
	if err != nil {
		return err
	}
	b, err := client.Get().AbsPath(path).SetHeader("Accept", "application/json").Do(ctx).Raw()
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return json.Unmarshal(b, into)
}
