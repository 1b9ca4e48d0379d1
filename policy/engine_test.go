package policy_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/policy"
)

const allowAPI = `
metadata: {name: web}
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}]}`

func TestRevisionCountsChangesOfPolicies(t *testing.T) {
	e := shop(t, decode(t, allowAPI)...)
	want := uint64(1)
	step := func(what string, changes bool, do func()) {
		t.Helper()
		before := e.Snapshot()
		do()
		if changes {
			want++
		}
		c := parseConnection(t, e.Snapshot(), "shop/api > shop/web tcp 80")
		if got := e.Snapshot().Decide(c).Revision; got != want || e.Snapshot().Revision() != want {
			t.Errorf("%s: revision %d, want %d", what, got, want)
		}
		if before == e.Snapshot() {
			t.Errorf("%s: the snapshot is the same", what)
		}
		if before.Decide(c).Revision != before.Revision() {
			t.Errorf("%s: the snapshot before has changed", what)
		}
	}
	step("the same policy again", false, func() { e.SetPolicy(decode(t, allowAPI)[0]) })
	step("a policy", true, func() { e.SetPolicy(decode(t, "metadata: {name: deny}\nspec: {}")[0]) })
	step("the policy, otherwise", true, func() { e.SetPolicy(decode(t, "metadata: {name: deny}\nspec: {ingress: [{}]}")[0]) })
	step("a policy that goes", true, func() { e.DeletePolicy("shop", "deny") })
	step("a policy that is not there", false, func() { e.DeletePolicy("shop", "deny") })
	step("a pod", false, func() { e.SetPod(policy.Pod{Namespace: "shop", Name: "new"}) })
	step("a pod that goes", false, func() { e.DeletePod("shop", "new") })
	step("a namespace", false, func() { e.SetNamespace("data", map[string]string{"team": "c"}) })
}

// A snapshot goes on to say what it said, whatever becomes of the engine.
func TestSnapshotsNeverChange(t *testing.T) {
	for seed := range uint64(60) {
		g := &generator{Rand: rand.New(rand.NewPCG(11, seed)), invalid: 0.03}
		w := g.world()
		e := w.engine(t, policy.NewClasses())
		type said struct {
			snapshot    *policy.Snapshot
			connections []*policy.Connection
			explained   []string
		}
		var history []said
		for range 8 {
			h := said{snapshot: e.Snapshot()}
			for range 10 {
				c := g.connection(w).asConnection(e.Classes(), nil)
				h.connections = append(h.connections, c)
				h.explained = append(h.explained, h.snapshot.Explain(c).String())
			}
			history = append(history, h)
			e.RenumberAt(g.IntN(60))
			w.change(g, e)
		}
		for i, h := range history {
			for j, c := range h.connections {
				if got := h.snapshot.Explain(c).String(); got != h.explained[j] {
					t.Fatalf("seed %d, snapshot %d says now\n%s\nand said\n%s", seed, i, got, h.explained[j])
				}
			}
		}
	}
}

func TestChangeRecompilesOnlyWhatItTouches(t *testing.T) {
	e := shop(t, decode(t, allowAPI+`
---
metadata: {name: db, namespace: data}
spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: a}}}]}]}`)...)
	ids := func() map[string]uint64 {
		out := make(map[string]uint64)
		s := e.Snapshot()
		for _, p := range s.Pods() {
			if p.Class != nil {
				out[p.Namespace+"/"+p.Name] = s.CompiledID(p.Class)
			}
		}
		return out
	}
	for _, c := range []struct {
		what    string
		do      func()
		touched []string
	}{
		{"a policy for one workload", func() {
			e.SetPolicy(decode(t, "metadata: {name: api}\nspec: {podSelector: {matchLabels: {app: api}}, ingress: [{from: [{namespaceSelector: {matchLabels: {stage: prod}}}]}]}")[0])
		}, []string{"shop/api"}},
		{"the same again", func() {
			e.SetPolicy(decode(t, "metadata: {name: api}\nspec: {podSelector: {matchLabels: {app: api}}, ingress: [{from: [{namespaceSelector: {matchLabels: {stage: prod}}}]}]}")[0])
		}, nil},
		{"another rule of one policy", func() {
			e.SetPolicy(decode(t, "metadata: {name: web}\nspec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: b}}}]}]}")[0])
		}, []string{"shop/web", "shop/web-2"}},
		{"a policy that goes", func() { e.DeletePolicy("data", "db") }, []string{"data/api", "data/db"}},
		{"a pod's label", func() {
			e.SetPod(policy.Pod{Namespace: "data", Name: "db", Labels: map[string]string{"app": "other"}})
		}, []string{"data/db"}},
		{"a namespace's label", func() { e.SetNamespace("data", map[string]string{"team": "z"}) }, []string{"data/api", "data/db"}},
		{"a namespace that goes", func() { e.DeleteNamespace("ops") }, []string{"ops/probe"}},
	} {
		before := ids()
		c.do()
		var touched []string
		for name, id := range ids() {
			if before[name] != id {
				touched = append(touched, name)
			}
		}
		slices.Sort(touched)
		if !slices.Equal(touched, c.touched) {
			t.Errorf("%s: recompiled %v, want %v", c.what, touched, c.touched)
		}
	}
}

// Late flows are judged by the policies of their time, while others are judged
// by those of now: neither makes the other compile again.
func TestThePastIsRemembered(t *testing.T) {
	e := shop(t, decode(t, allowAPI)...)
	web, db := e.Snapshot().Pod("shop", "web").Class, e.Snapshot().Pod("data", "db").Class
	var history []*policy.Snapshot
	ids := make(map[*policy.Class][]uint64)
	for i := range 3 {
		s := e.Snapshot()
		history = append(history, s)
		for _, c := range []*policy.Class{web, db} {
			ids[c] = append(ids[c], s.CompiledID(c))
		}
		e.SetPolicy(decode(t, fmt.Sprintf("metadata: {name: web}\nspec: {podSelector: {}, ingress: [{ports: [{port: %d}]}]}", i+1))[0])
	}
	e.Snapshot().CompiledID(web)
	for range 3 {
		for i, s := range history {
			for c, want := range ids {
				if got := s.CompiledID(c); got != want[i] {
					t.Errorf("class of %s, revision %d: compiled again", c.Namespace(), s.Revision())
				}
			}
			e.Snapshot().CompiledID(web)
		}
	}
	if all := ids[web]; all[0] == all[1] || all[1] == all[2] {
		t.Errorf("different policies are one: %v", all)
	}
	if all := ids[db]; all[0] != all[2] {
		t.Errorf("what touched nothing is another: %v", all)
	}
}

// A revision that nobody asked about in its time is found out later, once.
func TestAPastThatNobodyAskedAbout(t *testing.T) {
	e := shop(t, decode(t, allowAPI)...)
	web := e.Snapshot().Pod("shop", "web").Class
	e.SetPolicy(decode(t, "metadata: {name: web}\nspec: {podSelector: {}, ingress: [{ports: [{port: 80}]}]}")[0])
	old := e.Snapshot()
	e.SetPolicy(decode(t, "metadata: {name: web}\nspec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: b}}}]}]}")[0])
	now, past := e.Snapshot().CompiledID(web), old.CompiledID(web)
	for range 2 {
		if e.Snapshot().CompiledID(web) != now || old.CompiledID(web) != past {
			t.Error("compiled again")
		}
	}
	if now == past {
		t.Error("different policies are one")
	}
}

// A policy that came and went between two questions counts for its own time.
func TestAPolicyThatCameAndWent(t *testing.T) {
	e := shop(t, decode(t, allowAPI)...)
	connection := "data/db > shop/bare tcp 80"
	check(t, e, connection+" allowed")
	e.SetPolicy(decode(t, "metadata: {name: deny}\nspec: {}")[0])
	between := e.Snapshot()
	e.DeletePolicy("shop", "deny")
	check(t, e, connection+" allowed")
	if d := between.Decide(parseConnection(t, between, connection)); d.Verdict != flow.VerdictDenied {
		t.Errorf("in between it was %v", d.Verdict)
	}
	check(t, e, connection+" allowed")
}

func TestForksDoNotSeeEachOther(t *testing.T) {
	e := shop(t, decode(t, allowAPI)...)
	f := e.Fork()
	f.SetPolicy(decode(t, "metadata: {name: bare}\nspec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: b}}}]}]}")[0])
	e.SetPolicy(decode(t, "metadata: {name: other, namespace: data}\nspec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {stage: prod}}}]}]}")[0])
	f.DeletePod("shop", "bare")
	for range 3 { // they take turns with the same classes
		check(t, e, `
			data/db > shop/web tcp 80 denied
			data/db > shop/bare tcp 80 allowed
			ops/probe > data/db tcp 80 denied
			shop/web > data/db tcp 80 allowed`)
		check(t, f, `
			data/db > shop/web tcp 80 allowed
			shop/web > shop/api tcp 80 denied
			ops/probe > data/db tcp 80 allowed`)
	}
	if f.Snapshot().Pod("shop", "bare") != nil || e.Snapshot().Pod("shop", "bare") == nil {
		t.Error("a pod that is deleted in one is gone from the other, or stays in both")
	}
}

// Places among networks are numbered anew with each new network: what was
// remembered of a place must not be found under another's number.
func TestNewNetworksDoNotMixUpOldAnswers(t *testing.T) {
	e := shop(t, decode(t, "spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 20.0.0.0/24}}]}]}")...)
	check(t, e, `
		20.0.0.1 > shop/web tcp 80 allowed
		9.0.0.1 > shop/web tcp 80 denied`)
	e.SetPolicy(decode(t, "metadata: {name: x, namespace: data}\nspec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 9.0.0.0/8}}]}]}")[0])
	check(t, e, `
		9.0.0.1 > shop/web tcp 80 denied
		20.0.0.1 > shop/web tcp 80 allowed
		9.0.0.1 > data/db tcp 80 allowed`)
}

func TestForksHaveTheirOwnNetworks(t *testing.T) {
	one := func(name, cidr string) string {
		return "metadata: {name: " + name + ", namespace: data}\nspec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: " + cidr + "}}]}]}"
	}
	e := shop(t, decode(t, one("a", "20.0.0.0/24")+"\n---\n"+one("b", "20.0.1.0/24")+"\n---\n"+one("c", "20.0.2.0/24"))...)
	f := e.Fork()
	f.SetPolicy(decode(t, one("d", "30.0.0.0/8"))[0])
	e.SetPolicy(decode(t, one("d", "40.0.0.0/8"))[0])
	f.SetPolicy(decode(t, one("e", "50.0.0.0/8"))[0])
	check(t, f, `
		30.0.0.1 > data/db tcp 80 allowed
		40.0.0.1 > data/db tcp 80 denied
		50.0.0.1 > data/db tcp 80 allowed`)
	check(t, e, `
		30.0.0.1 > data/db tcp 80 denied
		40.0.0.1 > data/db tcp 80 allowed
		50.0.0.1 > data/db tcp 80 denied`)
}

// Engines that share classes, more than there are places for, never take each
// other's answers.
func TestManyEnginesOfOneClass(t *testing.T) {
	classes := policy.NewClasses()
	var engines []*policy.Engine
	for i := range 20 {
		e, err := policy.New(policy.Options{Classes: classes, Policies: decode(t, fmt.Sprintf("spec: {podSelector: {}, ingress: [{ports: [{port: %d}]}]}", i+1))})
		if err != nil {
			t.Fatal(err)
		}
		engines = append(engines, e)
	}
	dst := classes.End(&policy.Pod{Namespace: "shop", Name: "web", NamespaceLabels: map[string]string{}})
	src := policy.End{Kind: flow.EndpointOutside, Addr: parseEnd(t, engines[0].Snapshot(), "203.0.113.7").Addr}
	for range 2 {
		for i, e := range engines {
			for port := range uint16(20) {
				d := e.Snapshot().Decide(&policy.Connection{Src: src, Dst: dst, Protocol: flow.TCP, Port: port + 1})
				if want := int(port) == i; want != (d.Verdict == flow.VerdictAllowed) {
					t.Fatalf("engine %d, port %d: %v", i, port+1, d.Verdict)
				}
			}
		}
	}
}

func TestPodsOfOneKindAreOneClass(t *testing.T) {
	classes := policy.NewClasses()
	base := func() policy.Pod {
		return policy.Pod{
			Namespace: "a", Name: "x", NamespaceLabels: map[string]string{"k": "v"}, Labels: map[string]string{"l": "m", "n": "o"},
			Ports: []policy.NamedPort{{Name: "http", Protocol: flow.TCP, Port: 80}, {Name: "dns", Protocol: flow.UDP, Port: 53}},
		}
	}
	first := base()
	class := classes.Of(&first)
	same := map[string]func(*policy.Pod){
		"name and node":       func(p *policy.Pod) { p.Name, p.Node = "y", "n" },
		"order of ports":      func(p *policy.Pod) { slices.Reverse(p.Ports) },
		"a port without name": func(p *policy.Pod) { p.Ports = append(p.Ports, policy.NamedPort{Port: 1}, p.Ports[0]) },
	}
	other := map[string]func(*policy.Pod){
		"namespace":               func(p *policy.Pod) { p.Namespace = "b" },
		"namespace labels":        func(p *policy.Pod) { p.NamespaceLabels["k"] = "w" },
		"unknown namespace":       func(p *policy.Pod) { p.NamespaceLabels = nil },
		"labels":                  func(p *policy.Pod) { delete(p.Labels, "l") },
		"label to namespace":      func(p *policy.Pod) { p.NamespaceLabels["l"] = "m"; delete(p.Labels, "l") },
		"port number":             func(p *policy.Pod) { p.Ports[0].Port = 81 },
		"port protocol":           func(p *policy.Pod) { p.Ports[0].Protocol = flow.SCTP },
		"ports that are unknown":  func(p *policy.Pod) { p.PortsUnknown = true },
		"label that is cut anew":  func(p *policy.Pod) { delete(p.Labels, "l"); p.Labels["lm"] = "" },
		"labels without a border": func(p *policy.Pod) { p.Labels = map[string]string{"lm": "no"} },
	}
	for what, change := range same {
		p := base()
		if change(&p); classes.Of(&p) != class {
			t.Errorf("%s makes another class", what)
		}
	}
	for what, change := range other {
		p := base()
		if change(&p); classes.Of(&p) == class {
			t.Errorf("%s makes no other class", what)
		}
	}
	first.Labels["l"] = "changed"
	if class.Labels()["l"] != "m" {
		t.Error("a class changes with the map it was made from")
	}
}

func TestClassesKeepNoneThatNobodyUses(t *testing.T) {
	classes := policy.NewClasses()
	e, err := policy.New(policy.Options{Classes: classes, Policies: decode(t, allowAPI)})
	if err != nil {
		t.Fatal(err)
	}
	kept := classes.Of(&policy.Pod{Namespace: "shop", Name: "kept"})
	const many = 10_000
	for i := range many {
		src := classes.End(&policy.Pod{Namespace: "shop", Name: "job", Labels: map[string]string{"job-name": fmt.Sprint(i)}})
		e.Snapshot().Decide(&policy.Connection{Src: src, Dst: src, Protocol: flow.TCP, Port: 80})
	}
	for range 10 {
		runtime.GC()
	}
	if n := classes.Len(); n > many/10 {
		t.Errorf("%d classes are kept", n)
	}
	if classes.Of(&policy.Pod{Namespace: "shop", Name: "kept"}) != kept {
		t.Error("a class in use was made again")
	}
}

// Decisions, changes and forks at once; the race detector watches.
func TestConcurrentUse(t *testing.T) {
	g := &generator{Rand: rand.New(rand.NewPCG(3, 3)), invalid: 0.02}
	w := g.world()
	e := w.engine(t, policy.NewClasses())
	var connections []*policy.Connection
	for range 200 {
		connections = append(connections, g.connection(w).asConnection(e.Classes(), nil))
	}
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				s := e.Snapshot()
				c := connections[i%len(connections)]
				if d := s.Decide(c); d.Revision != s.Revision() {
					t.Errorf("decided at revision %d, asked at %d", d.Revision, s.Revision())
					return
				}
				if i%50 == 0 {
					s.Explain(c)
					e.Fork().Snapshot().Reach(&c.Src, &c.Dst)
				}
			}
		})
	}
	for range 300 {
		e.RenumberAt(g.IntN(60))
		w.change(g, e)
	}
	close(stop)
	readers.Wait()
	// Nothing of it has spoilt what the last state says.
	reference := w.reference()
	for range 500 {
		compare(t, e.Snapshot(), reference, g.connection(w), e.Classes())
	}
}

func TestReachAgreesWithDecide(t *testing.T) {
	split := 0
	for seed := range uint64(400) {
		g := &generator{Rand: rand.New(rand.NewPCG(5, seed)), invalid: []float64{0, 0.05}[seed%2]}
		w := g.world()
		e := w.engine(t, policy.NewClasses())
		s := e.Snapshot()
		for range 5 {
			c := g.connection(w).asConnection(e.Classes(), nil)
			c.Seen = policy.End{}
			ranges := s.Reach(&c.Src, &c.Dst)
			if len(ranges) > 3 {
				split++
			}
			for _, protocol := range []flow.Protocol{flow.TCP, flow.UDP, flow.SCTP} {
				checkRanges(t, s, c, protocol, ranges)
			}
		}
	}
	if split < 100 {
		t.Errorf("only %d pairs have several ranges", split)
	}
}

// checkRanges wants every port of the protocol in one range with its verdict.
func checkRanges(t *testing.T, s *policy.Snapshot, c *policy.Connection, protocol flow.Protocol, ranges []policy.PortRange) {
	t.Helper()
	next, last := 1, flow.VerdictUnanswered
	for _, r := range ranges {
		if r.Protocol != protocol {
			continue
		}
		if int(r.First) != next || r.Last < r.First || r.Verdict == last {
			t.Fatalf("%v follows port %d, %v: %v", r, next-1, last, ranges)
		}
		for _, port := range []uint16{r.First, 2, 52, 53, 54, 79, 80, 81, 82, 8079, 8080, 8081, r.First/2 + r.Last/2, r.Last} {
			asked := *c
			asked.Protocol, asked.Port = protocol, min(max(port, r.First), r.Last)
			if got := s.Decide(&asked).Verdict; got != r.Verdict {
				t.Fatalf("port %d is %v, its range %v", asked.Port, got, r)
			}
		}
		next, last = int(r.Last)+1, r.Verdict
	}
	if next != 65536 {
		t.Fatalf("%v ends at port %d: %v", protocol, next-1, ranges)
	}
}

func TestIsolatingNamesThePolicies(t *testing.T) {
	s := shop(t, decode(t, allowAPI+`
---
metadata: {name: all}
spec: {policyTypes: [Ingress, Egress]}`)...).Snapshot()
	class := s.Pod("shop", "web").Class
	if got := names(s.Isolating(class, flow.DirectionIngress)); !slices.Equal(got, []string{"shop/all", "shop/web"}) {
		t.Errorf("ingress: %v", got)
	}
	if got := names(s.Isolating(class, flow.DirectionEgress)); !slices.Equal(got, []string{"shop/all"}) {
		t.Errorf("egress: %v", got)
	}
	if got := s.Isolating(class, flow.DirectionUnknown); got != nil {
		t.Errorf("no direction: %v", got)
	}
}

func TestNamespaceLabels(t *testing.T) {
	s := shop(t).Snapshot()
	if s.NamespaceLabels("shop")["team"] != "a" || s.NamespaceLabels("ops") == nil || s.NamespaceLabels("none") != nil {
		t.Errorf("%v, %v, %v", s.NamespaceLabels("shop"), s.NamespaceLabels("ops"), s.NamespaceLabels("none"))
	}
	if all := s.Namespaces(); len(all) != 3 || all["data"]["team"] != "b" {
		t.Errorf("%v", all)
	}
}

func TestConnectGivesAddressesOfOneVersion(t *testing.T) {
	s := shop(t).Snapshot()
	six := *s.Pod("data", "db")
	six.Addrs = six.Addrs[1:]
	c := policy.Connect(s.Pod("shop", "web"), &six, flow.TCP, 80)
	if c.Src.Addr.String() != "fd00::1:1" || c.Dst.Addr.String() != "fd00::2:1" {
		t.Errorf("%v -> %v", c.Src.Addr, c.Dst.Addr)
	}
	c = policy.Connect(s.Pod("shop", "web"), s.Pod("data", "db"), flow.UDP, 53)
	if c.Src.Addr.String() != "10.0.1.1" || c.Dst.Addr.String() != "10.0.2.1" || c.Protocol != flow.UDP || c.Port != 53 {
		t.Errorf("%+v", c)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	if _, err := policy.New(policy.Options{CacheEntries: -1}); err == nil {
		t.Error("a cache of -1 entries is taken")
	}
}

// A cache that is much too small forgets, and never answers wrongly.
func TestSmallCache(t *testing.T) {
	e, err := policy.New(policy.Options{Policies: decode(t, "spec: {podSelector: {}, ingress: [{ports: [{port: 1000, endPort: 1999}]}]}"), CacheEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	dst := e.Classes().End(&policy.Pod{Namespace: "shop", Name: "web"})
	src := policy.End{Kind: flow.EndpointNode, Node: "n"}
	dst.Node = "m"
	for range 2 {
		for port := range uint16(20_000) {
			d := e.Snapshot().Decide(&policy.Connection{Src: src, Dst: dst, Protocol: flow.TCP, Port: port})
			if want := port >= 1000 && port <= 1999; port > 0 && want != (d.Verdict == flow.VerdictAllowed) {
				t.Fatalf("port %d: %v", port, d.Verdict)
			}
		}
	}
}
