package policy

import (
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/flowaudit/flowaudit/flow"
)

// edge is everything that a decision depends on, but for whether both ends are
// one pod or on one node.
type edge struct {
	// src and dst are ids of compiled classes; one that is no pod has its
	// kind, which is below all ids.
	src, dst uint64
	// Places of the addresses that the other side's ipBlocks match, where it
	// has any, and the version of the table that they are of.
	srcPlace, dstPlace place
	table              uint32
	traffic            uint32 // which sides are asked, protocol and port
}

func (e *edge) hash() uint64 {
	high, low := bits.Mul64(e.src^0x9e3779b97f4a7c15, e.dst^0xd1b54a32d192ed03)
	h := high ^ low ^ uint64(e.traffic)<<32 ^ uint64(e.srcPlace)
	high, low = bits.Mul64(h^0x8cb92ba72f3d8dd7, uint64(e.table)<<32+uint64(e.dstPlace)+0x2545f4914f6cdd1d)
	return high ^ low
}

// remembered is the decision of an edge's sides, as large as a cache line:
// finding one costs two lines, one of the table and this. It is never changed
// once it is in the cache.
type remembered struct {
	edge  edge
	sides [2]outcome
}

// outcome is what the rules of one side say.
type outcome struct {
	allowed *[]flow.PolicyRef // nil if no rule allows it
	verdict flow.Verdict
	reason  Reason
}

// cache remembers decisions. It forgets some when there are too many; readers
// never wait. Revisions share it: an edge names the policies that it depends on.
type cache struct {
	table atomic.Pointer[[]atomic.Pointer[remembered]]
	added atomic.Int64 // since the table has its size
	grow  sync.Mutex
	limit int
}

const (
	smallestCache = 1 << 10
	defaultCache  = 1 << 18
)

// newCache returns a cache for at most that many decisions, rounded up to a
// power of two; 0 means the default.
func newCache(limit int) *cache {
	if limit == 0 {
		limit = defaultCache
	}
	c := &cache{limit: max(smallestCache, 1<<bits.Len(uint(limit-1)))}
	table := make([]atomic.Pointer[remembered], smallestCache)
	c.table.Store(&table)
	return c
}

// find returns nil if the edge is not remembered. An edge has two places.
func (c *cache) find(e *edge) *remembered {
	table := *c.table.Load()
	at := e.hash() & uint64(len(table)-1)
	if r := table[at].Load(); r != nil && r.edge == *e {
		return r
	}
	if r := table[at^1].Load(); r != nil && r.edge == *e {
		return r
	}
	return nil
}

func (c *cache) add(r *remembered) {
	table := *c.table.Load()
	put(table, r)
	if added := c.added.Add(1); added > int64(2*len(table)) && len(table) < c.limit {
		c.enlarge(len(table))
	}
}

// put makes room by forgetting the older of two.
func put(table []atomic.Pointer[remembered], r *remembered) {
	at := r.edge.hash() & uint64(len(table)-1)
	if old := table[at].Load(); old != nil && old.edge != r.edge {
		table[at^1].Store(old)
	}
	table[at].Store(r)
}

// enlarge makes the table four times as large, unless another did.
func (c *cache) enlarge(from int) {
	c.grow.Lock()
	defer c.grow.Unlock()
	old := *c.table.Load()
	if len(old) != from {
		return
	}
	table := make([]atomic.Pointer[remembered], min(4*from, c.limit))
	for i := range old {
		if r := old[i].Load(); r != nil {
			put(table, r)
		}
	}
	c.added.Store(0)
	c.table.Store(&table)
}
