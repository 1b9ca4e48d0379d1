package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// OtherPolicy is a policy of another kind than the NetworkPolicy of Kubernetes.
type OtherPolicy struct {
	Group, Kind string
	Namespace   string // empty if it is of the whole cluster
	Name        string
	// Object is the policy's JSON; nil if the kind cannot be asked for: Name
	// is empty then, and there may be any number.
	Object json.RawMessage
}

func (p *OtherPolicy) String() string {
	return strings.TrimSpace(p.Kind + " " + strings.TrimPrefix(p.Namespace+"/"+p.Name, "/"))
}

// otherKind is a kind of policy that may decide beside NetworkPolicy.
type otherKind struct {
	group, resource, kind string
	wide                  bool // of the whole cluster
}

func (k *otherKind) String() string { return k.resource + "." + k.group }

func otherKinds() []otherKind {
	return []otherKind{
		{"policy.networking.k8s.io", "adminnetworkpolicies", "AdminNetworkPolicy", true},
		{"policy.networking.k8s.io", "baselineadminnetworkpolicies", "BaselineAdminNetworkPolicy", true},
		{"policy.networking.k8s.io", "clusternetworkpolicies", "ClusterNetworkPolicy", true},
		{"projectcalico.org", "networkpolicies", "NetworkPolicy", false},
		{"projectcalico.org", "globalnetworkpolicies", "GlobalNetworkPolicy", true},
		{"crd.projectcalico.org", "networkpolicies", "NetworkPolicy", false},
		{"crd.projectcalico.org", "globalnetworkpolicies", "GlobalNetworkPolicy", true},
		{"cilium.io", "ciliumnetworkpolicies", "CiliumNetworkPolicy", false},
		{"cilium.io", "ciliumclusterwidenetworkpolicies", "CiliumClusterwideNetworkPolicy", true},
		{"crd.antrea.io", "networkpolicies", "NetworkPolicy", false},
		{"crd.antrea.io", "clusternetworkpolicies", "ClusterNetworkPolicy", true},
	}
}

// calicoCopy begins the names by which Calico's API server shows the
// NetworkPolicies of Kubernetes among its own.
const calicoCopy = "knp.default."

const (
	discoverEvery = time.Minute
	discoverRetry = 15 * time.Second
	// otherPage is how many policies are asked for at a time.
	otherPage = 500
)

// others are the policies of other kinds.
type others struct {
	kinds    []string // resource.group, sorted
	policies []OtherPolicy
}

// discover looks again and again which policies of other kinds there are.
func (w *Watch) discover(ctx context.Context) error {
	for first := true; ; first = false {
		next := discoverEvery
		found, err := w.otherPolicies(ctx)
		if err != nil {
			next = discoverRetry
		} else {
			w.kinds.Store(&found.kinds)
			if w.Others != nil {
				w.Others(found.policies)
			}
		}
		if first {
			close(w.looked)
		}
		select {
		case <-time.After(next):
		case <-ctx.Done():
			return nil
		}
	}
}

// OtherKinds names the kinds of policy beside NetworkPolicy that the cluster
// has objects of, or that cannot be asked for, as resource.group.
func (w *Watch) OtherKinds() []string {
	if kinds := w.kinds.Load(); kinds != nil {
		return *kinds
	}
	return nil
}

func (s *server) otherPolicies(ctx context.Context) (*others, error) {
	// Every authenticated user may ask which groups there are.
	var groups metav1.APIGroupList
	if err := s.read(ctx, "/apis", &groups); err != nil {
		return nil, err
	}
	out := &others{}
	for _, k := range otherKinds() {
		i := slices.IndexFunc(groups.Groups, func(g metav1.APIGroup) bool { return g.Name == k.group })
		if i < 0 {
			continue
		}
		policies, err := s.otherOf(ctx, &k, &groups.Groups[i])
		if err != nil {
			return nil, err
		}
		if len(policies) > 0 {
			out.kinds = append(out.kinds, k.String())
			out.policies = append(out.policies, policies...)
		}
	}
	slices.Sort(out.kinds)
	return out, nil
}

// otherOf lists the policies of a kind, in the first version of its group that
// has the kind.
func (s *server) otherOf(ctx context.Context, k *otherKind, group *metav1.APIGroup) ([]OtherPolicy, error) {
	versions := []string{group.PreferredVersion.GroupVersion}
	for _, v := range group.Versions {
		if !slices.Contains(versions, v.GroupVersion) {
			versions = append(versions, v.GroupVersion)
		}
	}
	for _, version := range versions {
		policies, err := s.otherOfVersion(ctx, k, "/apis/"+version+"/"+k.resource)
		switch {
		case apierrors.IsNotFound(err):
			continue
		case apierrors.IsForbidden(err):
			return []OtherPolicy{{Group: k.group, Kind: k.kind}}, nil
		}
		return policies, err
	}
	return nil, nil
}

func (s *server) otherOfVersion(ctx context.Context, k *otherKind, path string) (out []OtherPolicy, err error) {
	next := ""
	for {
		var page struct {
			Metadata metav1.ListMeta
			Items    []json.RawMessage
		}
		query := url.Values{"limit": {fmt.Sprint(otherPage)}}
		if next != "" {
			query.Set("continue", next)
		}
		if err := s.read(ctx, path+"?"+query.Encode(), &page); err != nil {
			return nil, err
		}
		for _, raw := range page.Items {
			var o metav1.PartialObjectMetadata
			if err := json.Unmarshal(raw, &o); err != nil {
				return nil, fmt.Errorf("read %s: %w", k, err)
			}
			if k.group == "projectcalico.org" && strings.HasPrefix(o.Name, calicoCopy) {
				continue
			}
			out = append(out, OtherPolicy{Group: k.group, Kind: k.kind, Namespace: o.Namespace, Name: o.Name, Object: raw})
		}
		if next = page.Metadata.Continue; next == "" {
			return out, nil
		}
	}
}
