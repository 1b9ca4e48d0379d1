// Package store defines what the collector asks of a place that keeps flows.
package store

import (
	"context"
	"errors"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// ErrArgument marks an error that the asker can mend: an unknown question, a
// missing or malformed argument.
var ErrArgument = errors.New("invalid argument")

// ErrBatch marks what a store can never take of a batch, whatever becomes of
// disks and connections: sending it again is in vain.
var ErrBatch = errors.New("batch cannot be stored")

// ErrSight says that a question is for readers who see everything.
var ErrSight = errors.New("this is for readers of the whole cluster")

// Store keeps flows, their coverage and the keys of the batches that brought
// them. Every method may be called at any time from any goroutine.
//
// What readers ask takes their flow.Sight, and answers, counts and orders what
// shows of the flows only: no filter finds a flow by what is withheld of it.
// The zero Sight gets nothing.
//
// storetest.Run is the contract in executable form: every store passes it.
type Store interface {
	// Append commits the batches in one transaction, each whole and together
	// with its key, and returns after they are durable. A batch whose key was
	// committed before is skipped, also when it comes twice in one call; such
	// batches are reported in duplicate, in the order of batches. After an error
	// none of the batches is stored. ErrBatch means that one of them never can be.
	Append(ctx context.Context, batches []flow.Batch) (duplicate []bool, err error)

	// Stored reports which batches are stored, by their keys.
	Stored(ctx context.Context, keys []flow.BatchKey) ([]bool, error)

	// Flows gives the flows that show and pass the filter to yield, merged by
	// flow.Merge, ordered by Start, and ends early when yield returns false.
	Flows(ctx context.Context, req FlowsRequest, yield func(flow.Flow) bool) error

	// Count returns how many flows and connections show and pass the filter.
	Count(ctx context.Context, sight flow.Sight, filter flow.Filter) (flows, connections uint64, err error)

	// Query answers a named question of package queries by what shows; ErrSight
	// where the question needs everything.
	Query(ctx context.Context, sight flow.Sight, name string, args map[string]string) (Rows, error)

	// SQL answers one SELECT over the views of queries.Views, in the store's own
	// dialect. It can change nothing, and read nothing else. An answer of more
	// rows than maxRows is an error, as is everything that the asker can mend:
	// these are ErrArgument. It is ErrSight but for a sight of everything.
	SQL(ctx context.Context, sight flow.Sight, text string, maxRows int) (Rows, error)

	// Coverage says how much of the time from since to until each node was
	// watched. A node that reported at any time within the retention, but not
	// in that range, is listed with nothing covered.
	Coverage(ctx context.Context, sight flow.Sight, since, until time.Time) (flow.Coverage, error)

	// Reports gives what nodes reported, not merged, of the flows that start
	// from since until before until, in an order that is the same each time.
	Reports(ctx context.Context, since, until time.Time, yield func(flow.Flow) bool) error

	// Watched gives what batches covered, of those that begin from since until
	// before until, ordered by node, instance and time.
	Watched(ctx context.Context, since, until time.Time, yield func(Watched) bool) error

	// Gaps gives the gaps that begin from since until before until, ordered by
	// node and time.
	Gaps(ctx context.Context, since, until time.Time, yield func(flow.Gap) bool) error

	// Record adds changes to the timeline, in the order of their time for each
	// object, and returns after they are durable. A change that says what the
	// object's newest one says already is left out: a collector that starts
	// again tells everything that is there.
	Record(ctx context.Context, changes []flow.Change) error

	// Timeline gives yield the state at since, each object's newest change
	// before it unless that deleted the object, and then every change until
	// until, ordered by time; it ends early when yield returns false. A zero
	// since begins with the first change that is kept.
	Timeline(ctx context.Context, sight flow.Sight, since, until time.Time, yield func(flow.Change) bool) error

	// Edges gives the edges of the hours that touch the time from Since to Until
	// to yield, each once for the whole range, and ends early when yield
	// returns false. Edges that look alike by the sight are one. The edges of flows that retention deleted are kept until
	// RetainEdges.
	Edges(ctx context.Context, req EdgesRequest, yield func(*flow.Edge) bool) error

	// EdgeHours gives what edges counted in single hours to yield, hour by hour
	// but for what has just arrived, of those that keep accepts: keep is asked
	// once an edge, with its sum. What yield is given is valid during the call;
	// it ends early when yield returns false. It is ErrSight but for a sight of
	// everything.
	EdgeHours(ctx context.Context, req EdgesRequest, keep func(*flow.Edge) bool, yield func(*flow.Edge) bool) error

	// Put keeps documents and returns after they are durable. Of those of a kind
	// and ID the one of the latest time counts, and of these the last.
	Put(ctx context.Context, documents []Document) error

	// Documents gives the documents of a kind that count, whose time is since or
	// later, to yield, ordered by time and ID, and ends early when yield returns false.
	Documents(ctx context.Context, kind string, since time.Time, yield func(Document) bool) error

	// Discard deletes the documents of a kind from before the given time; some
	// of them may stay for a month, or an hour where the kind is short-lived.
	Discard(ctx context.Context, kind string, before time.Time) error

	// RetainEdges deletes the edges from before the given time, in whole
	// months, and returns how many bytes of disk that gave back.
	RetainEdges(ctx context.Context, before time.Time) (freed int64, err error)

	// Stats describes the store's content.
	Stats(ctx context.Context) (Stats, error)

	// Retain deletes what is not to be kept, in whole slices, and returns how
	// many bytes of disk that gave back. Of the timeline it keeps what says how
	// the cluster was when the oldest flows arrived that are kept.
	Retain(ctx context.Context, keep Retention) (freed int64, err error)

	// Close waits for running calls and releases the store.
	Close() error
}

// FlowsRequest asks for flows.
type FlowsRequest struct {
	Sight  flow.Sight
	Filter flow.Filter
	// First and Last limit the answer to the oldest or the newest flows; at
	// most one of them is set, 0 does not limit.
	First, Last int
}

// See is a flow as it shows; false if it does not, or does not pass the filter then.
func (r *FlowsRequest) See(f flow.Flow) (flow.Flow, bool) {
	shown, ok := r.Sight.Flow(f)
	return shown, ok && r.Filter.Matches(&shown)
}

// SeeAll are those of flows that See gives, in the same memory.
func (r *FlowsRequest) SeeAll(flows []flow.Flow) []flow.Flow {
	out := flows[:0]
	for _, f := range flows {
		if shown, ok := r.See(f); ok {
			out = append(out, shown)
		}
	}
	return out
}

// Watched is a time that an agent watched a node.
type Watched struct {
	Node, Instance string
	Scope          flow.Scope
	Start, End     time.Time
	Limits         []string
}

// Document is what is kept beside flows and looked up by its ID: an alert, a silence.
type Document struct {
	Kind, ID string
	Time     time.Time // in milliseconds
	Body     []byte
}

// ShortLived marks the kinds of documents that are discarded within hours.
const ShortLived = "signal"

// EdgesRequest asks for edges. A zero Since is unbounded.
type EdgesRequest struct {
	Sight        flow.Sight
	Since, Until time.Time
}

// Retention says what is kept. Edges are kept until RetainEdges.
type Retention struct {
	// Since is the arrival of the oldest flows that are kept; zero keeps all.
	Since time.Time
	// Denied is the same of refused flows, whose coverage is not kept longer.
	// It only keeps more than Since does: a later time, and zero, mean Since.
	Denied time.Time
	// Bytes bounds what all that is stored takes on disk: the oldest flows go
	// until it does, and the refused ones only when no others are left. The
	// newest slice and edges stay whatever they take. 0 is no bound.
	Bytes uint64
}

// DeniedSince is from when on refused flows are kept; zero keeps all.
func (r Retention) DeniedSince() time.Time {
	if r.Denied.IsZero() || r.Denied.After(r.Since) {
		return r.Since
	}
	return r.Denied
}

// Rows is a small table.
type Rows struct {
	Columns []string
	Rows    [][]any // string, int64, float64, bool, time.Time or nil
}

// Stats describes a store.
type Stats struct {
	Kind   string // "duckdb"
	Flows  uint64
	Bytes  uint64    // on disk
	Oldest time.Time // of the flows kept; zero if there are none
	// Arrived is from when on everything that arrived is kept, but for what
	// retention leaves of refused flows; zero if nothing is.
	Arrived time.Time
	Slices  int
}
