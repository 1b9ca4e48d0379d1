package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// otherPolicies are the kinds of policy that may decide beside NetworkPolicy.
func otherPolicies() []schema.GroupResource {
	var out []schema.GroupResource
	for group, resources := range map[string][]string{
		"policy.networking.k8s.io": {"adminnetworkpolicies", "baselineadminnetworkpolicies", "clusternetworkpolicies"},
		"projectcalico.org":        {"networkpolicies", "globalnetworkpolicies"},
		"crd.projectcalico.org":    {"networkpolicies", "globalnetworkpolicies"},
		"cilium.io":                {"ciliumnetworkpolicies", "ciliumclusterwidenetworkpolicies"},
		"crd.antrea.io":            {"networkpolicies", "clusternetworkpolicies"},
	} {
		for _, r := range resources {
			out = append(out, schema.GroupResource{Group: group, Resource: r})
		}
	}
	return out
}

const (
	discoverEvery = 5 * time.Minute
	discoverRetry = 15 * time.Second
)

// discover looks again and again which other kinds of policy are in use.
func (w *Watch) discover(ctx context.Context) error {
	for {
		next := discoverEvery
		kinds, err := w.policyKinds(ctx)
		if err != nil {
			next = discoverRetry
		} else {
			w.other.Store(&kinds)
		}
		select {
		case <-time.After(next):
		case <-ctx.Done():
			return nil
		}
	}
}

// OtherPolicies names the kinds of policy beside NetworkPolicy that the
// cluster has objects of, or that cannot be asked for, as resource.group.
func (w *Watch) OtherPolicies() []string {
	if kinds := w.other.Load(); kinds != nil {
		return *kinds
	}
	return nil
}

func (w *Watch) policyKinds(ctx context.Context) ([]string, error) {
	// Every authenticated user may ask which groups there are.
	var groups metav1.APIGroupList
	if err := w.read(ctx, "/apis", &groups); err != nil {
		return nil, err
	}
	var out []string
	for _, p := range otherPolicies() {
		i := slices.IndexFunc(groups.Groups, func(g metav1.APIGroup) bool { return g.Name == p.Group })
		if i < 0 {
			continue
		}
		var one struct{ Items []json.RawMessage }
		err := w.read(ctx, "/apis/"+groups.Groups[i].PreferredVersion.GroupVersion+"/"+p.Resource+"?limit=1", &one)
		switch {
		case apierrors.IsNotFound(err):
		case apierrors.IsForbidden(err), err == nil && len(one.Items) > 0:
			out = append(out, p.String())
		case err != nil:
			return nil, err
		}
	}
	slices.Sort(out)
	return out, nil
}

func (w *Watch) read(ctx context.Context, path string, into any) error {
	client, err := restClient(w.config, w.client, schema.GroupVersion{Version: "v1"})
	if err != nil {
		return err
	}
	b, err := client.Get().RequestURI(path).SetHeader("Accept", "application/json").Do(ctx).Raw()
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return json.Unmarshal(b, into)
}
