package flow

import (
	"fmt"
	"time"
)

// BatchKey makes a batch known by name, so that a resend is stored once.
type BatchKey struct {
	Cluster  string // UID of kube-system, or a configured name
	Instance string // the reporting node's or pod's UID or name
	Epoch    uint64 // random, chosen when the agent's queue is created
	Sequence uint64 // from 1, one more for each batch of an epoch
}

// String shows the key for logs.
func (k BatchKey) String() string {
	return fmt.Sprintf("%s/%s/%x/%d", k.Cluster, k.Instance, k.Epoch, k.Sequence)
}

// Scope says what an agent looks at.
type Scope uint8

// The scopes.
const (
	ScopeNode Scope = iota // a node's network namespace
	ScopePod               // one pod's own network namespace
)

// String returns node or pod.
func (s Scope) String() string {
	if s == ScopePod {
		return "pod"
	}
	return "node"
}

// Batch is what an agent sends at once: the flows of a window, or early
// denials, together with the coverage that they stand on.
type Batch struct {
	Key   BatchKey
	Node  string
	Scope Scope
	// Start and End bound the time that this batch covers. Batches of early
	// denials cover nothing: Start equals End.
	Start, End time.Time
	Flows      []Flow
	Gaps       []Gap
	Agent      AgentStatus
}

// AgentStatus is what an agent says about itself with each batch.
type AgentStatus struct {
	Version      string
	Started      time.Time
	Observations uint64   // read from the sources since Started
	Malformed    uint64   // messages that could not be decoded since Started
	Connections  uint64   // live connections in the table
	Contradicted uint64   // logged refusals of packets that conntrack confirmed, since Started
	Sources      []string // open sources, such as "nflog:100" and "conntrack"
	// Skew is how far the API server's clock is ahead of the node's; 0 if it
	// was not measured.
	Skew time.Duration
	// Notes say in plain words which sources were chosen, and why.
	Notes []string
	// Limits says in plain words what this agent cannot see.
	Limits []string
}

// GapKind says why something was not seen.
type GapKind uint8

// The kinds.
const (
	GapUnknown   GapKind = iota
	GapOverrun           // the socket overflowed (ENOBUFS)
	GapSequence          // sequence numbers are missing
	GapQueue             // the agent's own queue was full: flows were dropped before they were sent
	GapDowntime          // the agent did not run
	GapSource            // a source could not be opened or ended
	GapMalformed         // messages could not be decoded
	GapTable             // the table was full
	GapNames             // the API server was away: names may be those of before
)

var gapKindNames = [...]string{"unknown", "overrun", "sequence", "queue", "downtime", "source", "malformed", "table", "names"}

// String returns the kind in lower case.
func (k GapKind) String() string { return name(gapKindNames[:], uint8(k)) }

// Gap is a time during which a node could not see everything.
type Gap struct {
	Node       string
	Source     string // "nflog:100", "conntrack"; empty for the whole agent
	Kind       GapKind
	Start, End time.Time
	Lost       uint64 // how many events; 0 if that cannot be known
	Detail     string // an error text for people
}

// NodeCoverage says how much of a time range one node was watched.
type NodeCoverage struct {
	Node    string
	Scope   Scope
	Covered time.Duration // of the range, without the downtime
	Gaps    []Gap
	Limits  []string
}

// Coverage says what an answer stands on.
type Coverage struct {
	Since, Until time.Time
	Nodes        []NodeCoverage
}
