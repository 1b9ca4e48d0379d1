package collector

import (
	"context"
	"fmt"
	"net"
	"sync"

	"golang.org/x/sync/semaphore"
	limiter "golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// limits keep one agent from harming the others. An agent is told apart by what
// it has proven, and else by the address that it comes from; those on a unix
// socket are on this machine and are not told apart, nor limited.
type limits struct {
	rate float64 // flows a second; 0 is no bound
	all  *semaphore.Weighted

	mu    sync.Mutex
	known map[string]*limit
}

// limit is one agent's.
type limit struct {
	key     string
	streams int
	flows   *limiter.Limiter
	room    room
}

const (
	// maxStreams is how many streams one agent may have open: what it sends, what
	// it sends again, and those of connections that the network has lost.
	maxStreams = 8
	// burst is how many seconds' flows may come at once.
	burst = 10
)

func newLimits(flowsPerSecond float64) *limits {
	return &limits{rate: flowsPerSecond, all: semaphore.NewWeighted(allBytes), known: make(map[string]*limit)}
}

// enter counts a stream in; leave counts it out again.
func (l *limits) enter(ctx context.Context) (one *limit, leave func(), err error) {
	key := caller(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	one = l.known[key]
	if key == "" {
		return &limit{flows: limiter.NewLimiter(limiter.Inf, 0), room: l.room()}, func() {}, nil
	}
	if one == nil {
		one = &limit{key: key, flows: limiter.NewLimiter(limiter.Inf, 0), room: l.room()}
		if l.rate > 0 {
			one.flows = limiter.NewLimiter(limiter.Limit(l.rate), int(burst*l.rate))
		}
		l.known[key] = one
	}
	if one.streams >= maxStreams {
		return nil, nil, status.Error(codes.ResourceExhausted, fmt.Sprintf("%s has %d streams open already", key, one.streams))
	}
	one.streams++
	return one, func() { l.leave(one) }, nil
}

func (l *limits) room() room { return room{semaphore.NewWeighted(agentBytes), l.all} }

func (l *limits) leave(one *limit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	// Its rate is forgotten with its last stream: who comes again at once gains a burst.
	if one.streams--; one.streams == 0 {
		delete(l.known, one.key)
	}
}

// wait holds a batch back until its flows are within the rate; the agent's next
// ones wait in the network, and then at the agent.
func (o *limit) wait(ctx context.Context, flows int) error {
	for ; flows > 0; flows -= o.flows.Burst() {
		if o.flows.Limit() == limiter.Inf {
			return nil
		}
		if err := o.flows.WaitN(ctx, min(flows, o.flows.Burst())); err != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

func caller(ctx context.Context) string {
	if a, ok := agentOf(ctx); ok {
		return a.String()
	}
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "nobody"
	}
	host, _, err := net.SplitHostPort(p.Addr.String())
	if err != nil {
		return "" // a unix socket's
	}
	return host
}
