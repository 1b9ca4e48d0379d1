package evidence

import (
	"archive/zip"
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

func newKey(t testing.TB) (*Key, ed25519.PublicKey) {
	t.Helper()
	private, public, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	k, err := ParseKey(private)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := ParsePublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return k, pub
}

var day = time.Date(2026, 3, 4, 0, 0, 0, 0, time.UTC)

// aFlow is a flow between two namespaces; n tells flows apart.
func aFlow(n int, from, to string, verdict flow.Verdict) flow.Flow {
	at := day.Add(time.Duration(n) * time.Second)
	return flow.Flow{
		Key: flow.Key{
			Protocol: flow.TCP, Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.1.1"), Port: 5432, Verdict: verdict, Direction: flow.DirectionEgress,
		},
		Start: at, End: at.Add(3 * time.Second), Cluster: "c", Node: "node-1", SourcePort: uint16(40000 + n), Connections: 1,
		Source:      &flow.Endpoint{Kind: flow.EndpointPod, Namespace: from, Pod: "web", Labels: map[string]string{"b": "2", "a": "1"}},
		Destination: &flow.Endpoint{Kind: flow.EndpointPod, Namespace: to, Pod: "db"},
		Policies:    []flow.PolicyRef{{Kind: "NetworkPolicy", Namespace: to, Name: "db"}},
	}
}

func aBatch(instance string, sequence uint64, flows ...flow.Flow) *flow.Batch {
	return &flow.Batch{
		Key: flow.BatchKey{Cluster: "c", Instance: instance, Epoch: 7, Sequence: sequence}, Node: "node-1", Start: day, End: day.Add(10 * time.Second), Flows: flows,
		Gaps: []flow.Gap{{Node: "node-1", Kind: flow.GapOverrun, Start: day, End: day.Add(time.Second), Lost: 3}},
	}
}

// recorded is what a collector would have stored.
type recorded struct {
	key      *Key
	public   ed25519.PublicKey
	sections []*Section
	flows    map[Hash][]byte
}

// record stores three checkpoints of two agents' batches.
func record(t testing.TB) *recorded {
	r := &recorded{flows: make(map[Hash][]byte)}
	r.key, r.public = newKey(t)
	agents := make(map[string]Link)
	var last Link
	n := 0
	for section := range 3 {
		var batches []*Batch
		for _, instance := range []string{"a", "b"} {
			var flows []flow.Flow
			for range 4 {
				n++
				verdict := flow.VerdictAllowed
				if n%3 == 0 {
					verdict = flow.VerdictDenied
				}
				to := "shop"
				if n%4 == 0 {
					to = "bank"
				}
				flows = append(flows, aFlow(n, "shop", to, verdict))
			}
			flows = append(flows, aFlow(100+n, "other", "other", flow.VerdictAllowed))
			b := r.key.NewBatch(aBatch(instance, uint64(section+1), flows...))
			agents[b.Agent] = b.Follow(agents[b.Agent])
			batches = append(batches, b)
			for i := range flows {
				line := AppendFlow(nil, &flows[i])
				r.flows[LeafHash(line)] = line
			}
		}
		s := r.key.Seal("collector", last, day.Add(time.Duration(section)*time.Minute).UnixMilli(), batches)
		last = s.Link()
		r.sections = append(r.sections, s)
	}
	return r
}

func (r *recorded) bundle(t testing.TB, scope Scope, tombstones ...*SignedTombstone) []byte {
	t.Helper()
	var out bytes.Buffer
	w := r.key.NewWriter(&out, scope)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(w.Sections(func(yield func(*Section) error) error {
		for _, s := range r.sections {
			if err := yield(s); err != nil {
				return err
			}
		}
		return nil
	}))
	check(w.Tombstones(tombstones))
	check(w.Objects(func(yield func(*flow.Change) error) error {
		for _, ns := range []string{"shop", "bank"} {
			if err := yield(&flow.Change{Time: day, Kind: flow.ChangePolicy, Namespace: ns, Name: "db", Object: []byte(`{"spec":{}}`)}); err != nil {
				return err
			}
		}
		return nil
	}))
	check(w.Flows(func(yield func([]byte) error) error {
		for _, s := range r.sections {
			for _, b := range s.Links {
				for i := range b.Groups {
					g := &b.Groups[i]
					for j := range g.Len() {
						if w.Shows(g) && !slices.Contains(g.Gone, j) {
							if err := yield(bytes.Clone(r.flows[g.Leaf(j)])); err != nil {
								return err
							}
						}
					}
				}
			}
		}
		return nil
	}))
	check(w.Close(day))
	return out.Bytes()
}

func verify(b []byte, public ed25519.PublicKey) (*Summary, error) {
	return Verify(bytes.NewReader(b), int64(len(b)), public)
}

// change rewrites files of a bundle by line; nil leaves a file out.
func change(t testing.TB, bundle []byte, edit map[string]func(lines []string) []string) []byte {
	t.Helper()
	z, err := zip.NewReader(bytes.NewReader(bundle), int64(len(bundle)))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w := zip.NewWriter(&out)
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if e := edit[f.Name]; e != nil {
			lines := e(strings.SplitAfter(strings.TrimSuffix(string(text), "\n"), "\n"))
			if lines == nil {
				continue
			}
			for i := range lines {
				lines[i] = strings.TrimSuffix(lines[i], "\n") + "\n"
			}
			text = []byte(strings.Join(lines, ""))
		}
		to, err := w.Create(f.Name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := to.Write(text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestABundleAsItWasVerifies(t *testing.T) {
	r := record(t)
	for _, c := range []struct {
		scope Scope
		flows uint64
	}{
		{Scope{Until: day, Everyone: true}, 36}, // 30 flows, of which 6 are of two namespaces
		{Scope{Until: day, Namespace: "shop"}, 24},
		{Scope{Until: day, Namespace: "bank"}, 6},
		{Scope{Until: day, Namespace: "none"}, 0},
	} {
		s, err := verify(r.bundle(t, c.scope), r.public)
		if err != nil {
			t.Fatalf("%+v: %v", c.scope, err)
		}
		if s.Flows != c.flows || s.Batches != 6 || s.Checkpoints != 3 || s.Agents != 2 {
			t.Errorf("%+v: %+v, want %d flows of 6 batches", c.scope, s, c.flows)
		}
	}
}

func TestABundleOfANamespaceShowsNoOther(t *testing.T) {
	r := record(t)
	b := change(t, r.bundle(t, Scope{Until: day, Namespace: "bank"}), nil)
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range z.File {
		rd, _ := f.Open()
		text, err := io.ReadAll(rd)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(text, []byte("other")) {
			t.Errorf("%s tells of another namespace:\n%s", f.Name, text)
		}
	}
}

func TestWhatWasDoneToABundleIsNamed(t *testing.T) {
	r := record(t)
	whole := r.bundle(t, Scope{Until: day, Everyone: true})
	swap := func(i, j int) func([]string) []string {
		return func(l []string) []string { l[i], l[j] = l[j], l[i]; return l }
	}
	remove := func(i int) func([]string) []string {
		return func(l []string) []string { return slices.Delete(l, i, i+1) }
	}
	replace := func(i int, from, to string) func([]string) []string {
		return func(l []string) []string {
			if !strings.Contains(l[i], from) {
				t.Fatalf("no %s in %s", from, l[i])
			}
			l[i] = strings.Replace(l[i], from, to, 1)
			return l
		}
	}
	cut := func(n int) func([]string) []string {
		return func(l []string) []string { return l[:len(l)-n] }
	}
	type edit = map[string]func([]string) []string
	for name, c := range map[string]struct {
		edit edit
		want string
	}{
		"a record is altered":           {edit{fileFlows: replace(2, `"source_port":4`, `"source_port":5`)}, "flows.jsonl line 3, namespace"},
		"a record is altered, named so": {edit{fileFlows: replace(2, `"source_port":4`, `"source_port":5`)}, "altered"},
		"a record is removed":           {edit{fileFlows: remove(1)}, "flows.jsonl line 2, namespace"},
		"records are swapped":           {edit{fileFlows: swap(1, 2)}, "out of order"},
		"a record is inserted":          {edit{fileFlows: func(l []string) []string { return slices.Insert(l, 3, `{"start":1,"end":2}`) }}, "flows.jsonl line 4, namespace"},
		"a record is repeated":          {edit{fileFlows: func(l []string) []string { return slices.Insert(l, 3, l[3]) }}, "flows.jsonl line 5"},
		"the tail of flows is cut":      {edit{fileFlows: cut(2)}, "flows.jsonl line 35, namespace"},
		"a line follows the last":       {edit{fileFlows: func(l []string) []string { return append(l, `{}`) }}, "flows.jsonl line 37: the line belongs to no checkpoint"},
		"a batch is removed":            {edit{fileBatches: remove(2)}, "batches.jsonl line 4, batch 3 of agent c/a (epoch 7, sequence 3): batch 2 of the agent is missing"},
		"batches are swapped":           {edit{fileBatches: swap(0, 2)}, "batches.jsonl line 1, batch 2 of agent c/a"},
		"a batch is altered":            {edit{fileBatches: replace(1, `"lost":3`, `"lost":0`)}, "batches.jsonl line 1"},
		"the tail of batches is cut":    {edit{fileBatches: cut(1)}, "batches.jsonl line 6: the file ends"},
		"a leaf is altered":             {edit{fileBatches: replace(1, `"denied":1`, `"denied":2`)}, "batches.jsonl line 2, batch 1 of agent c/b"},
		"a group is dropped":            {edit{fileBatches: replace(0, `"groups":[`, `"groups":[{"tag":"`+Hash{}.String()+`","root":"`+Hash{}.String()+`"},`)}, "its groups are not those of its root"},
		"a checkpoint is removed":       {edit{fileCheckpoints: remove(1)}, "checkpoints.jsonl line 2: checkpoint 2"},
		"a checkpoint is altered":       {edit{fileCheckpoints: replace(1, `"batches":2`, `"batches":1`)}, "signature of checkpoint 2"},
		"the last checkpoint is cut":    {edit{fileCheckpoints: cut(1)}, "checkpoints 3 to 3"},
		"the policies are swapped":      {edit{fileObjects: swap(0, 1)}, "objects.jsonl: it is not the file that was signed"},
		"a policy is removed":           {edit{fileObjects: remove(0)}, "objects.jsonl line 2: the file ends"},
		"a file is removed":             {edit{fileObjects: func([]string) []string { return nil }}, "objects.jsonl: it is missing"},
		"the manifest is altered":       {edit{fileManifest: replace(0, `"last":3`, `"last":2`)}, "manifest.json line 1: the signature"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := verify(change(t, whole, c.edit), r.public)
			var fault *Fault
			if !errors.As(err, &fault) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want a fault with %q", err, c.want)
			}
		})
	}
}

func TestAnotherKeyVerifiesNothing(t *testing.T) {
	r := record(t)
	_, other := newKey(t)
	if _, err := verify(r.bundle(t, Scope{Until: day, Everyone: true}), other); err == nil {
		t.Error("a bundle verified with a key that did not sign it")
	}
}

// strip removes what the store has of a group's flows.
func strip(r *recorded, section int, denied bool) {
	for _, b := range r.sections[section].Links {
		for i := range b.Groups {
			g := &b.Groups[i]
			for j := range g.Len() {
				if (j < g.Denied) == denied {
					g.Gone = append(g.Gone, j)
				}
			}
		}
	}
}

func TestOnlyRetentionMayDelete(t *testing.T) {
	tombstone := Tombstone{Writer: "collector", Time: day.UnixMilli(), Flows: day.Add(time.Second).UnixMilli(), Denied: day.UnixMilli(), Reason: "retention"}
	for name, c := range map[string]struct {
		section     int
		denied      bool
		buried      bool
		wantMissing bool
	}{
		"nobody says why":                        {0, false, false, true},
		"a tombstone covers it":                  {0, false, true, false},
		"refused flows were to be kept longer":   {0, true, true, true},
		"they were stored after the tombstone's": {1, false, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := record(t)
			strip(r, c.section, c.denied)
			var buried []*SignedTombstone
			if c.buried {
				buried = append(buried, r.key.Bury(tombstone))
			}
			s, err := verify(r.bundle(t, Scope{Until: day, Everyone: true}, buried...), r.public)
			if missing := err != nil; missing != c.wantMissing {
				t.Fatalf("%v, want missing %v", err, c.wantMissing)
			}
			if err == nil && s.Deleted == 0 {
				t.Error("nothing is told of what was deleted")
			}
		})
	}
}

func TestATombstoneCannotBeInvented(t *testing.T) {
	r := record(t)
	strip(r, 0, false)
	other, _ := newKey(t)
	forged := other.Bury(Tombstone{Writer: "collector", Flows: day.AddDate(1, 0, 0).UnixMilli()})
	if _, err := verify(r.bundle(t, Scope{Until: day, Everyone: true}, forged), r.public); err == nil || !strings.Contains(err.Error(), "tombstones.jsonl line 1") {
		t.Errorf("%v, want a fault of the tombstone", err)
	}
}

func TestAFlowsLineIsJSONAndSaysAllThatStoresKeep(t *testing.T) {
	f := aFlow(1, "shop", "ba\"\\\n\x01nk\xff", flow.VerdictDenied)
	f.Service = &flow.Service{Addr: netip.MustParseAddr("10.96.0.1"), Port: 443, Namespace: "shop", Name: "db"}
	f.Source.Candidates, f.Source.Identity = []string{"a/b", "c/d"}, 0xab
	line := AppendFlow(nil, &f)
	var any map[string]any
	if err := json.Unmarshal(line, &any); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	for name, alter := range map[string]func(*flow.Flow){
		"start": func(f *flow.Flow) { f.Start = f.Start.Add(time.Millisecond) }, "end": func(f *flow.Flow) { f.End = f.End.Add(time.Millisecond) },
		"node": func(f *flow.Flow) { f.Node = "x" }, "port": func(f *flow.Flow) { f.Port++ }, "verdict": func(f *flow.Flow) { f.Verdict = flow.VerdictAllowed },
		"expected": func(f *flow.Flow) { f.Expected = flow.VerdictDenied }, "translated": func(f *flow.Flow) { f.TranslatedSrc = f.Dst },
		"label": func(f *flow.Flow) {
			e := *f.Source
			e.Labels = map[string]string{"a": "1"}
			f.Source = &e
		},
		"service": func(f *flow.Flow) { f.Service = nil }, "policy": func(f *flow.Flow) { f.Policies = nil }, "counted": func(f *flow.Flow) { f.Counted = true },
		"bytes": func(f *flow.Flow) { f.Received.Bytes++ }, "flags": func(f *flow.Flow) { f.TCPFlags++ }, "sources": func(f *flow.Flow) { f.Sources++ },
		"connections": func(f *flow.Flow) { f.Connections++ }, "cluster": func(f *flow.Flow) { f.Cluster = "d" },
		"end pod": func(f *flow.Flow) { f.Destination = nil },
	} {
		other := f
		alter(&other)
		if bytes.Equal(AppendFlow(nil, &other), line) {
			t.Errorf("the line does not tell %s", name)
		}
	}
	same := f
	same.Start, same.NamedFrom = same.Start.Add(time.Microsecond), day
	same.Src = netip.AddrFrom16(same.Src.As16())
	if got := AppendFlow(nil, &same); !bytes.Equal(got, line) {
		t.Errorf("what stores do not keep changes the line:\n%s\n%s", got, line)
	}
}

func TestRootIsThatOfRFC6962(t *testing.T) {
	leaf := func(s string) Hash { return LeafHash([]byte(s)) }
	a, b, c := leaf("a"), leaf("b"), leaf("c")
	for i, want := range []Hash{Root(nil), a, node(a, b), node(node(a, b), c), node(node(a, b), node(c, a)), node(node(node(a, b), node(c, a)), b)} {
		if got := Root([]Hash{a, b, c, a, b}[:i]); got != want {
			t.Errorf("root of %d leaves is %s, want %s", i, got, want)
		}
	}
	if got := fmt.Sprint(Root(nil)); got != "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" {
		t.Errorf("root of nothing is %s", got)
	}
}

func FuzzBundle(f *testing.F) {
	r := record(f)
	whole := r.bundle(f, Scope{Until: day, Everyone: true})
	f.Add(whole)
	f.Add(r.bundle(f, Scope{Until: day, Namespace: "bank"}))
	f.Add(whole[:len(whole)/2])
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := verify(b, r.public); err == nil && s.Manifest.Version != 1 {
			t.Errorf("verified %+v", s)
		}
	})
}

// FuzzFlows puts any bytes where the records of a whole bundle are: only the
// records that were there verify.
func FuzzFlows(f *testing.F) {
	r := record(f)
	whole := r.bundle(f, Scope{Until: day, Everyone: true})
	var was string
	change(f, whole, map[string]func([]string) []string{fileFlows: func(l []string) []string { was = strings.Join(l, ""); return l }})
	f.Add(was)
	f.Add("{}\n")
	f.Add(was[:len(was)/2])
	f.Fuzz(func(t *testing.T, text string) {
		bundle := change(t, whole, map[string]func([]string) []string{fileFlows: func([]string) []string { return strings.SplitAfter(text, "\n") }})
		if _, err := verify(bundle, r.public); err == nil && strings.TrimRight(text, "\n") != strings.TrimRight(was, "\n") {
			t.Errorf("other records verify:\n%s", text)
		}
	})
}

func BenchmarkNewBatch(b *testing.B) {
	k, _ := newKey(b)
	var flows []flow.Flow
	for n := range 1000 {
		flows = append(flows, aFlow(n, "shop", []string{"shop", "bank"}[n%2], flow.VerdictAllowed))
	}
	batch := aBatch("a", 1, flows...)
	b.ReportAllocs()
	for b.Loop() {
		k.NewBatch(batch)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(flows)), "ns/flow")
}
