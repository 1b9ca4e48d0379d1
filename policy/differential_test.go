package policy_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy"
)

// decisions is how many connections are compared; each is decided for both
// sides by an engine that lived through many changes.
const decisions = 1_000_000

func TestEngineDecidesAsTheReference(t *testing.T) {
	const shards, perWorld, changes = 4, 800, 12
	for shard := range shards {
		t.Run(fmt.Sprint(shard), func(t *testing.T) {
			t.Parallel()
			seen := make(map[string]int)
			for seed := range uint64(decisions / shards / perWorld) {
				g := &generator{Rand: rand.New(rand.NewPCG(uint64(shard), seed)), invalid: []float64{0, 0.02, 0.1}[seed%3]}
				lifetime(t, g, perWorld, changes, seen)
				if t.Failed() {
					t.Fatalf("world of seed (%d, %d)", shard, seed)
				}
			}
			// The generator must reach every kind of answer often.
			for _, verdict := range []string{"allowed", "denied", "unknown"} {
				if seen[verdict] < decisions/shards/50 {
					t.Errorf("only %d decisions are %s", seen[verdict], verdict)
				}
			}
		})
	}
}

// lifetime changes a world again and again, and compares decisions after each
// change. Half of the connections are asked about again after every change, so
// that what is remembered could be wrong. A fork goes its own way meanwhile.
func lifetime(t *testing.T, g *generator, connections, changes int, seen map[string]int) {
	w := g.world()
	engine := w.engine(t, policy.NewClasses())
	fork := engine.Fork()
	again := g.Uint64()
	for range changes {
		snapshot := engine.Snapshot()
		reference := w.reference()
		same := &generator{Rand: rand.New(rand.NewPCG(again, again))}
		for i := range (connections + changes - 1) / changes {
			from := g
			if i%2 == 0 {
				from = same
			}
			seen[compare(t, snapshot, reference, from.connection(w), engine.Classes())]++
		}
		if t.Failed() {
			t.Log(w)
			return
		}
		if g.often(0.2) {
			engine.RenumberAt(g.IntN(60))
		}
		w.change(g, engine)
		fork.SetPolicy(g.policy())
	}
	if got, want := engine.Snapshot().Problems(), w.engine(t, engine.Classes()).Snapshot().Problems(); !slices.Equal(got, want) {
		t.Errorf("problems after changes:\n%v\ncompiled at once:\n%v", got, want)
	}
}

func (w *world) engine(t *testing.T, classes *policy.Classes) *policy.Engine {
	t.Helper()
	o := policy.Options{Classes: classes, Namespaces: make(map[string]map[string]string)}
	for _, name := range slices.Sorted(maps.Keys(w.policies)) {
		o.Policies = append(o.Policies, w.policies[name])
	}
	for name, labels := range w.namespaces {
		if labels != nil {
			o.Namespaces[name] = labels
		}
	}
	for _, p := range w.pods {
		o.Pods = append(o.Pods, p.asPod())
	}
	e, err := policy.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func (w *world) reference() *refPolicies {
	return newReference(slices.Collect(maps.Values(w.policies)))
}

func (w *world) String() string {
	var text []byte
	for _, p := range w.policies {
		b, _ := yaml.Marshal(p)
		text = append(append(text, "---\n"...), b...)
	}
	return string(text)
}

// change changes one thing, in the world and in the engine.
func (w *world) change(g *generator, e *policy.Engine) {
	switch g.IntN(6) {
	case 0, 1:
		p := g.policy()
		w.policies[p.Namespace+"/"+p.Name] = p
		e.SetPolicy(recoded(g, p))
	case 2:
		for key, p := range w.policies {
			delete(w.policies, key)
			e.DeletePolicy(p.Namespace, p.Name)
			break
		}
	case 3:
		name := pick(g, g.namespaceNames()...)
		w.namespaces[name] = g.namespaceLabels()
		if w.namespaces[name] == nil {
			e.DeleteNamespace(name)
		} else {
			e.SetNamespace(name, w.namespaces[name])
		}
	case 4:
		i := g.IntN(len(w.pods))
		e.DeletePod(w.pods[i].namespace, w.pods[i].name)
		w.pods[i] = g.pod(w.pods[i].name, i)
		w.relabel()
		e.SetPod(w.pods[i].asPod())
	default:
		i := g.IntN(len(w.pods))
		w.pods[i].labels = g.labels()
		e.SetPod(w.pods[i].asPod())
	}
	w.relabel()
}

// recoded is a policy as it comes from an API server or from a file.
func recoded(g *generator, p *networkingv1.NetworkPolicy) *networkingv1.NetworkPolicy {
	switch g.IntN(8) {
	case 0: // slow
		return throughYAML(p)
	case 1, 2, 3:
		return throughProtobuf(p)
	}
	return p
}

// compare decides by both and returns the verdict.
func compare(t *testing.T, s *policy.Snapshot, r *refPolicies, c *refConnection, classes *policy.Classes) string {
	t.Helper()
	connection := c.asConnection(classes, s)
	d := s.Decide(connection)
	if again := s.Decide(connection); again.Verdict != d.Verdict || !equalSides(&again.Egress, &d.Egress) || !equalSides(&again.Ingress, &d.Ingress) {
		t.Errorf("%+v is decided in two ways:\n%+v\n%+v", connection, d, again)
	}
	verdict, egress, ingress := r.decide(c)
	if d.Verdict.String() != verdict {
		t.Errorf("%s\n  engine %v, reference %v", describe(c), d.Verdict, verdict)
	}
	compareSide(t, "egress", c, &d.Egress, &egress)
	compareSide(t, "ingress", c, &d.Ingress, &ingress)
	return verdict
}

func equalSides(a, b *policy.Side) bool {
	return a.Verdict == b.Verdict && a.Reason == b.Reason && a.Isolated == b.Isolated && slices.Equal(a.By, b.By) && slices.Equal(a.Allowed, b.Allowed)
}

func compareSide(t *testing.T, name string, c *refConnection, got *policy.Side, want *refSide) {
	t.Helper()
	if got.Verdict.String() != want.verdict || got.Isolated != want.isolated || !named(got.By, want.by) || !named(got.Allowed, want.allowed) {
		t.Errorf("%s, %s\n  engine    %v (%v), isolated %v by %v, allowed by %v\n  reference %v, isolated %v by %v, allowed by %v", describe(c), name,
			got.Verdict, got.Reason, got.Isolated, names(got.By), names(got.Allowed), want.verdict, want.isolated, want.by, want.allowed)
	}
}

func names(refs []flow.PolicyRef) []string {
	var out []string
	for _, r := range refs {
		out = append(out, nameOf(r))
	}
	return out
}

func nameOf(r flow.PolicyRef) string {
	if r.Rule == "" {
		return r.Namespace + "/" + r.Name
	}
	return r.Namespace + "/" + r.Name + " " + r.Rule
}

// named reports whether refs have these names, in this order.
func named(refs []flow.PolicyRef, names []string) bool {
	return slices.EqualFunc(refs, names, func(r flow.PolicyRef, name string) bool { return nameOf(r) == name })
}

func describe(c *refConnection) string {
	return fmt.Sprintf("%s -> %s, %s %d, seen %v", c.src, c.dst, c.protocol, c.port, c.seen)
}

func (e refEnd) String() string {
	if e.pod != nil {
		return fmt.Sprintf("%s of %+v", e.ip, *e.pod)
	}
	return fmt.Sprintf("%s %s (node %q)", e.kind, e.ip, e.node)
}
