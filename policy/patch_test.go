package policy_test

import (
	"encoding/json"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy"
)

// A patch is what it says: a side that denies allows the connection once it is
// applied, and nothing else of the policies is touched.
func TestPatchAllowsTheConnection(t *testing.T) {
	patched, withoutPatch, fresh := 0, 0, 0
	for seed := range uint64(1500) {
		g := &generator{Rand: rand.New(rand.NewPCG(7, seed)), invalid: []float64{0, 0, 0.05}[seed%3]}
		w := g.world()
		engine := w.engine(t, policy.NewClasses())
		s := engine.Snapshot()
		for range 12 {
			c := g.connection(w).asConnection(engine.Classes(), nil)
			e := s.Explain(c)
			if again := s.Explain(c); e.String() != again.String() {
				t.Fatalf("explained in two ways:\n%s\n%s", e, again)
			}
			for i, side := range []*policy.SideExplanation{&e.Egress, &e.Ingress} {
				if side.Verdict != "denied" {
					if side.Patch != nil || side.Nearest != nil {
						t.Errorf("a side that does not deny has a patch:\n%s", e)
					}
					continue
				}
				if side.Patch == nil {
					withoutPatch++
					checkNoPatch(t, c, i, e)
					continue
				}
				patched++
				if side.Patch.New {
					fresh++
				}
				checkPatch(t, engine, c, i, side, e)
			}
			if t.Failed() {
				t.Fatalf("world of seed %d:\n%s", seed, w)
			}
		}
	}
	if patched < 1000 || fresh < 50 || withoutPatch < 10 {
		t.Errorf("%d patches, %d of them new policies, %d denials without: the generator does not reach all of them", patched, fresh, withoutPatch)
	}
}

func TestNewPolicyTakesAFreeName(t *testing.T) {
	e := shop(t, decode(t, `
metadata: {name: deny}
spec: {}
---
metadata: {name: allow-ingress-tcp-80}
spec: {podSelector: {}}
---
metadata: {name: allow-ingress-tcp-80-2}
spec: {podSelector: {}}`)...)
	s := e.Snapshot()
	for port, want := range map[string]string{"80": "allow-ingress-tcp-80-3", "81": "allow-ingress-tcp-81", "0": "allow-ingress-tcp"} {
		x := s.Explain(parseConnection(t, s, "data/db > shop/web tcp "+port))
		if p := x.Ingress.Patch; p == nil || p.Policy.Name != want || !strings.Contains(p.YAML, "name: "+want+"\n") {
			t.Errorf("port %s: %+v, want a policy named %s", port, p, want)
		}
	}
}

// checkNoPatch accepts that there is no patch only where no rule could name the end.
func checkNoPatch(t *testing.T, c *policy.Connection, side int, e *policy.Explanation) {
	t.Helper()
	peer := c.Dst
	if side == 1 {
		if peer = c.Src; c.Seen != (policy.End{}) {
			peer = c.Seen
		}
	}
	if peer.Kind == flow.EndpointPod || peer.Addr.IsValid() && peer.Kind != flow.EndpointService {
		t.Errorf("denied without a patch:\n%s", e)
	}
}

func checkPatch(t *testing.T, engine *policy.Engine, c *policy.Connection, side int, x *policy.SideExplanation, e *policy.Explanation) {
	t.Helper()
	fork := engine.Fork()
	before := fork.Snapshot()
	if problems := fork.SetPolicy(applied(t, before, x.Patch)); len(problems) > 0 {
		t.Errorf("the patch is not valid: %v\n%s", problems, e)
	}
	if added := len(fork.Snapshot().Policies()) - len(before.Policies()); x.Patch.New != (added == 1) {
		t.Errorf("the patch adds %d policies\n%s", added, e)
	}
	d := fork.Snapshot().Decide(c)
	if got := []policy.Side{d.Egress, d.Ingress}[side]; got.Verdict != flow.VerdictAllowed || got.Reason != policy.ReasonRule {
		t.Errorf("patched, it is %v (%v)\n%s", got.Verdict, got.Reason, e)
	}
}

// applied is the policy that a patch makes, by way of JSON as the API server would.
func applied(t *testing.T, s *policy.Snapshot, p *policy.Patch) *networkingv1.NetworkPolicy {
	t.Helper()
	out := &networkingv1.NetworkPolicy{}
	if p.New {
		if err := yaml.UnmarshalStrict([]byte(p.YAML), out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	var tree any
	for _, object := range s.Policies() {
		if object.Namespace == p.Policy.Namespace && object.Name == p.Policy.Name {
			tree = throughJSON(t, object)
		}
	}
	for _, o := range p.Operations {
		if o.Op != "add" {
			t.Fatalf("operation %s is not one that this test knows", o.Op)
		}
		tree = add(t, tree, strings.Split(o.Path, "/")[1:], throughJSON(t, o.Value))
	}
	text, err := json.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalStrict(text, out); err != nil {
		t.Fatal(err)
	}
	return out
}

func throughJSON(t *testing.T, value any) (out any) {
	t.Helper()
	text, err := json.Marshal(value)
	if err == nil {
		err = json.Unmarshal(text, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// add is the operation of RFC 6902: an object's member, or behind a list's last item.
func add(t *testing.T, tree any, path []string, value any) any {
	t.Helper()
	switch node := tree.(type) {
	case map[string]any:
		if len(path) == 1 {
			node[path[0]] = value
		} else {
			node[path[0]] = add(t, node[path[0]], path[1:], value)
		}
		return node
	case []any:
		if len(path) == 1 && path[0] == "-" {
			return append(node, value)
		}
		i, err := strconv.Atoi(path[0])
		if err != nil || i >= len(node) || len(path) == 1 {
			t.Fatalf("path %v leads nowhere in %v", path, node)
		}
		node[i] = add(t, node[i], path[1:], value)
		return node
	}
	t.Fatalf("path %v leads nowhere", path)
	return nil
}
