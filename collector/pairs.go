package collector

import (
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// pairs counts what deserves a look by who talked to whom: by workload, and
// for so many pairs only. What comes beyond them counts as of others.
type pairs struct {
	limit  int
	counts map[workloadPair]*pairCounts
	others pairCounts
	swept  time.Time
	last   workloadPair // of the flow before: flows of a pair come together
	recent *pairCounts
}

// workloadPair is who talked to whom. An end that is no pod has no namespace,
// and its kind as workload.
type workloadPair struct {
	cluster             string
	source, destination workloadName
}

type workloadName struct{ namespace, kind, name string }

// label is the workload as a label.
func (w workloadName) label() string {
	if w.name == "" {
		return w.kind
	}
	return w.kind + "/" + w.name
}

// pairCounts are connections.
type pairCounts struct {
	denied, unexplained, unenforced uint64
	seen                            time.Time
}

// otherWorkload stands for the pairs beyond the limit.
const otherWorkload = "other"

const (
	// pairMemory is how long a pair is kept that is not seen, where there is no
	// room for another.
	pairMemory = 24 * time.Hour
	// sweepInterval bounds how often room is looked for.
	sweepInterval = time.Minute
)

func newPairs(limit int) pairs {
	return pairs{limit: limit, counts: make(map[workloadPair]*pairCounts)}
}

// add counts a flow.
func (p *pairs) add(cluster string, f *flow.Flow, now time.Time) {
	denied, unenforced := f.Verdict == flow.VerdictDenied, f.Assessment == flow.AssessmentUnenforced
	if !denied && !unenforced || f.Connections == 0 {
		return
	}
	c := p.of(workloadPair{cluster, workloadOf(f.Source), workloadOf(f.Destination)}, now)
	c.seen = now
	if denied {
		c.denied += f.Connections
	}
	if unenforced {
		c.unenforced += f.Connections
	}
	if f.Assessment == flow.AssessmentUnexplained {
		c.unexplained += f.Connections
	}
}

// of finds a pair's counts, or those of the others.
func (p *pairs) of(k workloadPair, now time.Time) *pairCounts {
	if p.recent != nil && p.last == k {
		return p.recent
	}
	c := p.counts[k]
	if c == nil {
		if len(p.counts) >= p.limit && now.Sub(p.swept) >= sweepInterval {
			p.sweep(now)
		}
		if len(p.counts) >= p.limit {
			return &p.others
		}
		c = &pairCounts{}
		p.counts[k] = c
	}
	p.last, p.recent = k, c
	return c
}

// sweep forgets the pairs that were not seen for long.
func (p *pairs) sweep(now time.Time) {
	p.swept, p.recent = now, nil
	for k, c := range p.counts {
		if now.Sub(c.seen) > pairMemory {
			delete(p.counts, k)
		}
	}
}

// clone copies the counts.
func (p *pairs) clone() pairs {
	c := pairs{others: p.others, counts: make(map[workloadPair]*pairCounts, len(p.counts))}
	for k, counts := range p.counts {
		copied := *counts
		c.counts[k] = &copied
	}
	return c
}

// each gives every pair, the others last if there are any.
func (p *pairs) each(give func(workloadPair, pairCounts)) {
	for k, c := range p.counts {
		give(k, *c)
	}
	if !p.others.seen.IsZero() {
		other := workloadName{otherWorkload, otherWorkload, ""}
		give(workloadPair{otherWorkload, other, other}, p.others)
	}
}

// workloadOf names an end by its workload. A bare pod's is "Pod": its own name
// would be a label that nothing bounds.
func workloadOf(e *flow.Endpoint) workloadName {
	switch {
	case e == nil:
		return workloadName{kind: flow.EndpointUnknown.String()}
	case e.Kind != flow.EndpointPod:
		return workloadName{kind: e.Kind.String()}
	case e.Workload.Kind == "Pod" || e.Workload.Name == "":
		return workloadName{e.Namespace, "Pod", ""}
	}
	return workloadName{e.Namespace, e.Workload.Kind, e.Workload.Name}
}
