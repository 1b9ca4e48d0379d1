package evidence

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/flowaudit/flowaudit/flow"
)

// BatchHead is a link of an agent's chain: what is hashed of a batch. Times are
// Unix milliseconds.
type BatchHead struct {
	Agent    string `json:"agent"`  // cluster/instance
	Number   uint64 `json:"number"` // of the agent's links, from 1
	Prev     Hash   `json:"prev"`   // the link before; zero of the first
	Epoch    uint64 `json:"epoch"`
	Sequence uint64 `json:"sequence"`
	Node     string `json:"node"`
	Scope    string `json:"scope"`
	Start    int64  `json:"start"` // of what it covers; of early denials start is end
	End      int64  `json:"end"`
	Gaps     []Gap  `json:"gaps,omitempty"`
	Root     Hash   `json:"root"` // over the groups
}

// Gap is what the agent could not see, and when.
type Gap struct {
	Node   string `json:"node"`
	Source string `json:"source,omitempty"`
	Kind   string `json:"kind"`
	Start  int64  `json:"start"`
	End    int64  `json:"end"`
	Lost   uint64 `json:"lost,omitempty"`
	Detail string `json:"detail,omitempty"`
}

// Hash is the link's own, which the next one names.
func (h *BatchHead) Hash() Hash { return hashOf(prefixBatch, marshal(h)) }

// Group is what a batch holds of a namespace. Who may not see it has only Tag and Root.
type Group struct {
	Tag  Hash `json:"tag"`
	Root Hash `json:"root"`
	// Namespace is the name, Proof what its tag is the hash of. A flow that is
	// of no namespace has the empty one.
	Namespace string `json:"namespace,omitempty"`
	Proof     []byte `json:"proof,omitempty"`
	// Leaves are the hashes of its flows one after the other, the Denied refused ones first.
	Leaves Leaves `json:"leaves,omitempty"`
	Denied int    `json:"denied,omitempty"`
	// Gone are the leaves whose flows the store does not have any more.
	Gone []int `json:"gone,omitempty"`
}

// Leaves are hashes one after the other. As text they are hexadecimal digits,
// which compress to what they are, and to nothing where they are repeated.
type Leaves []byte

// MarshalText implements encoding.TextMarshaler.
func (l Leaves) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, l), nil }

// UnmarshalText reads what MarshalText writes.
func (l *Leaves) UnmarshalText(text []byte) (err error) {
	if *l, err = hex.AppendDecode(nil, text); err != nil {
		return fmt.Errorf("read leaves: %w", err)
	}
	return nil
}

// Shown reports whether the group's leaves are to be seen.
func (g *Group) Shown() bool { return len(g.Proof) > 0 }

// Len is how many flows the group has, if it is shown.
func (g *Group) Len() int { return len(g.Leaves) / len(Hash{}) }

// Leaf is the hash of a flow.
func (g *Group) Leaf(i int) Hash { return Hash(g.Leaves[i*len(Hash{}) : (i+1)*len(Hash{})]) }

// hashes are those of the leaves.
func (g *Group) hashes() []Hash {
	all := make([]Hash, g.Len())
	for i := range all {
		all[i] = g.Leaf(i)
	}
	return all
}

// hide removes what only who may see the namespace sees.
func (g *Group) hide() Group { return Group{Tag: g.Tag, Root: g.Root} }

// Batch is a link with what it stands for.
type Batch struct {
	BatchHead
	// First and Last bound the starts of the flows, in Unix milliseconds; they
	// are there to find these again and prove nothing.
	First  int64   `json:"first,omitempty"`
	Last   int64   `json:"last,omitempty"`
	Groups []Group `json:"groups,omitempty"` // by tag
}

// rootOf is the root over groups.
func rootOf(groups []Group) Hash {
	leaves := make([]Hash, len(groups))
	for i := range groups {
		leaves[i] = LeafHash(append(groups[i].Tag[:], groups[i].Root[:]...))
	}
	return Root(leaves)
}

// AgentOf names the agent of a batch: its chain.
func AgentOf(k flow.BatchKey) string { return k.Cluster + "/" + k.Instance }

// NewBatch makes the tree of a batch as it is going to be stored. Its place in
// the agent's chain is given by Chain.Link.
func (k *Key) NewBatch(b *flow.Batch) *Batch {
	out := &Batch{BatchHead: BatchHead{
		Agent: clean(AgentOf(b.Key)), Epoch: b.Key.Epoch, Sequence: b.Key.Sequence,
		Node: clean(b.Node), Scope: b.Scope.String(), Start: b.Start.UnixMilli(), End: b.End.UnixMilli(),
	}}
	for _, g := range b.Gaps {
		out.Gaps = append(out.Gaps, Gap{clean(g.Node), clean(g.Source), g.Kind.String(), g.Start.UnixMilli(), g.End.UnixMilli(), g.Lost, clean(g.Detail)})
	}
	byName := make(map[string]*leaves)
	var line []byte
	for i := range b.Flows {
		f := &b.Flows[i]
		line = AppendFlow(line[:0], f)
		h := LeafHash(line)
		first, second := namespaces(f)
		addLeaf(byName, first, f, h)
		if second != first {
			addLeaf(byName, second, f, h)
		}
		if ms := f.Start.UnixMilli(); i == 0 {
			out.First, out.Last = ms, ms
		} else {
			out.First, out.Last = min(out.First, ms), max(out.Last, ms)
		}
	}
	for name, l := range byName {
		out.Groups = append(out.Groups, k.group(name, l))
	}
	slices.SortFunc(out.Groups, func(x, y Group) int { return strings.Compare(string(x.Tag[:]), string(y.Tag[:])) })
	out.Root = rootOf(out.Groups)
	return out
}

// leaves are those of a namespace.
type leaves struct{ denied, others []Hash }

func addLeaf(byName map[string]*leaves, namespace string, f *flow.Flow, h Hash) {
	l := byName[namespace]
	if l == nil {
		l = &leaves{}
		byName[namespace] = l
	}
	if f.Verdict == flow.VerdictDenied {
		l.denied = append(l.denied, h)
	} else {
		l.others = append(l.others, h)
	}
}

func (k *Key) group(namespace string, l *leaves) Group {
	t := k.Tag(namespace)
	all := append(l.denied, l.others...)
	g := Group{Tag: t.Hash, Namespace: clean(namespace), Proof: t.Proof, Denied: len(l.denied), Root: groupRoot(all, len(l.denied))}
	g.Leaves = make(Leaves, 0, len(all)*len(Hash{}))
	for i := range all {
		g.Leaves = append(g.Leaves, all[i][:]...)
	}
	return g
}

// clean makes a text that JSON gives back as it was.
func clean(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// marshal writes what this package reads. It holds only what JSON can hold.
func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("write evidence: %v", err)) // no value can be so
	}
	return b
}

// Link is the newest of a chain.
type Link struct {
	Number uint64 `json:"number"`
	Hash   Hash   `json:"hash"`
	Time   int64  `json:"time,omitempty"` // of a checkpoint
}

// Follow puts the batch after the link.
func (b *Batch) Follow(l Link) Link {
	b.Number, b.Prev = l.Number+1, l.Hash
	return Link{Number: b.Number, Hash: b.BatchHead.Hash()}
}
