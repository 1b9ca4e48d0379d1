package replay

import (
	"errors"
	"fmt"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/flowaudit/flowaudit/policy/history"
)

// Change is a change of policies that is not applied.
type Change struct {
	// Apply are policies that are added, or replace those of the same name.
	// They must not be changed afterwards.
	Apply  []*networkingv1.NetworkPolicy
	Delete []Name
	// Whole says that Apply are all the policies there are.
	Whole bool
	// Namespaces lists namespaces of which Apply are all the policies.
	Namespaces []string
}

// Name names a policy.
type Name struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// Validate reports what cannot be.
func (c *Change) Validate() error {
	if len(c.Apply)+len(c.Delete)+len(c.Namespaces) == 0 && !c.Whole {
		return errors.New("the change is empty: give policies to apply or to delete")
	}
	seen := make(map[Name]bool)
	for _, p := range c.Apply {
		n := Name{p.Namespace, p.Name}
		switch {
		case p.Namespace == "" || p.Name == "":
			return fmt.Errorf("NetworkPolicy %s/%s: namespace and name are needed", p.Namespace, p.Name)
		case seen[n]:
			return fmt.Errorf("NetworkPolicy %s/%s is given twice", p.Namespace, p.Name)
		}
		seen[n] = true
	}
	for _, n := range c.Delete {
		if seen[n] {
			return fmt.Errorf("NetworkPolicy %s/%s is both applied and deleted", n.Namespace, n.Name)
		}
	}
	return nil
}

// overrides reports whether the change decides about a policy, whatever the
// history says of it.
func (c *Change) overrides() func(namespace, name string) bool {
	own := make(map[Name]bool)
	for _, p := range c.Apply {
		own[Name{p.Namespace, p.Name}] = true
	}
	for _, n := range c.Delete {
		own[n] = true
	}
	return func(namespace, name string) bool {
		return c.Whole || own[Name{namespace, name}] || slices.Contains(c.Namespaces, namespace)
	}
}

// After lists the policies at the end of a history, with the change applied.
func (c *Change) After(h *history.History) []*networkingv1.NetworkPolicy {
	overrides := c.overrides()
	out := slices.Clone(c.Apply)
	for _, p := range h.Policies {
		if !overrides(p.Namespace, p.Name) {
			out = append(out, p.NetworkPolicy)
		}
	}
	return out
}
