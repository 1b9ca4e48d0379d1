package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// collector answers streams as a test wants: answer is called with each
// stream's number, from 1.
type collector struct {
	mu      sync.Mutex
	streams int
	answer  func(stream int, s *fakeStream) error
	send    func(*flowauditv1.Batch) error // may be nil
	got     []uint64                       // sequences, in order
}

// fakeStream is one stream to a collector.
type fakeStream struct {
	grpc.ClientStream
	ctx    context.Context
	owner  *collector
	number int
	sent   chan *flowauditv1.Batch
	acks   chan *flowauditv1.Ack
	failed chan error
}

func (c *collector) Report(ctx context.Context, _ ...grpc.CallOption) (grpc.BidiStreamingClient[flowauditv1.Batch, flowauditv1.Ack], error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.streams++
	s := &fakeStream{ctx: ctx, owner: c, number: c.streams, sent: make(chan *flowauditv1.Batch, 100), acks: make(chan *flowauditv1.Ack, 100), failed: make(chan error, 1)}
	return s, c.answer(c.streams, s)
}

func (s *fakeStream) Send(b *flowauditv1.Batch) error {
	s.owner.mu.Lock()
	defer s.owner.mu.Unlock()
	if s.owner.send != nil {
		if err := s.owner.send(b); err != nil {
			return err
		}
	}
	s.owner.got = append(s.owner.got, b.GetKey().GetSequence())
	s.sent <- b
	return nil
}

func (s *fakeStream) CloseSend() error {
	close(s.sent)
	return nil
}

func (s *fakeStream) Recv() (*flowauditv1.Ack, error) {
	select {
	case ack, ok := <-s.acks:
		if !ok {
			return nil, io.EOF
		}
		return ack, nil
	case err := <-s.failed:
		return nil, err
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
}

// acknowledge answers every batch until the sender closes, or is gone.
func (s *fakeStream) acknowledge() {
	for {
		select {
		case b, ok := <-s.sent:
			if !ok {
				close(s.acks)
				return
			}
			s.acks <- &flowauditv1.Ack{Key: b.GetKey()}
		case <-s.ctx.Done():
			return
		}
	}
}

func newStream(c *collector, q *queue) *stream {
	return &stream{queue: q, client: c, hurry: func() {}, log: slog.New(slog.DiscardHandler)}
}

func TestStreamSendsUntilAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue("c", "n1", 7, 100)
		began := time.Now()
		c := &collector{answer: func(n int, s *fakeStream) error {
			switch n {
			case 1:
				return errors.New("connection refused")
			case 2: // takes batches, and is gone before it acknowledges
				go func() {
					<-s.sent
					<-s.sent
					close(s.acks)
				}()
			default:
				go s.acknowledge()
			}
			return nil
		}}
		q.put(batchOf(1, 0))
		q.put(batchOf(1, 0))
		done := make(chan error)
		go func() { done <- newStream(c, q).run(t.Context()) }()
		synctest.Wait()
		q.put(batchOf(1, 0))
		q.close()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if want := []uint64{1, 2, 3, 1, 2, 3}; !slices.Equal(c.got, want) {
			t.Errorf("the collector got %v, want %v", c.got, want)
		}
		if batches, _, _ := q.waiting(); batches != 0 || c.streams != 4 {
			t.Errorf("%d batches wait after %d streams", batches, c.streams)
		}
		if took := time.Since(began); took != minBackoff+2*minBackoff {
			t.Errorf("it tried again after %s, want pauses that double from %s", took, minBackoff)
		}
	})
}

func TestStreamBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue("c", "n1", 7, 100)
		q.put(batchOf(1, 0))
		var tries []time.Time
		c := &collector{answer: func(int, *fakeStream) error {
			tries = append(tries, time.Now())
			return errors.New("connection refused")
		}}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		if err := newStream(c, q).run(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("it ended with %v", err)
		}
		if n := len(tries); n < 40 || n > 80 {
			t.Errorf("%d tries in five minutes", n)
		}
		if last := tries[len(tries)-1].Sub(tries[len(tries)-2]); last != maxBackoff {
			t.Errorf("the last pause was %s, want at most %s", last, maxBackoff)
		}
	})
}

// TestARefusedBatchIsNotSentAgain: the collector said why it can never take it.
func TestARefusedBatchIsNotSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue("c", "n1", 7, 100)
		c := &collector{answer: func(_ int, s *fakeStream) error {
			go func() {
				for b := range s.sent {
					s.acks <- &flowauditv1.Ack{Key: b.GetKey(), Refused: true, Error: "field key: …"}
				}
				close(s.acks)
			}()
			return nil
		}}
		q.put(batchOf(3, 0))
		q.close()
		s := newStream(c, q)
		if err := s.run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if want := []uint64{1, 2}; !slices.Equal(c.got, want) {
			t.Errorf("sent %v, want it once, and what tells of it", c.got)
		}
	})
}

// TestABatchThatEndsTheStreamIsFound: a collector that ends the stream because
// of a batch does not say of which. It alone is given up.
func TestABatchThatEndsTheStreamIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue("c", "n1", 7, 100)
		taken := make(map[uint64]int)
		var lost []*flowauditv1.Gap
		c := &collector{}
		c.answer = func(_ int, s *fakeStream) error {
			go func() {
				for b := range s.sent {
					if b.GetKey().GetSequence() == 2 {
						s.failed <- status.Error(codes.InvalidArgument, "a name holds a zero byte")
						return
					}
					c.mu.Lock()
					lost = append(lost, b.GetGaps()...)
					taken[b.GetKey().GetSequence()]++
					c.mu.Unlock()
					if n := b.GetKey().GetSequence(); n != 3 || s.number > 1 {
						s.acks <- &flowauditv1.Ack{Key: b.GetKey()}
					}
				}
				close(s.acks)
			}()
			return nil
		}
		for range 4 {
			q.put(batchOf(5, 0))
		}
		q.close()
		s := newStream(c, q)
		if err := s.run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if taken[1] == 0 || taken[3] == 0 || taken[4] == 0 || taken[2] != 0 {
			t.Errorf("taken: %v", taken)
		}
		if len(lost) != 1 || lost[0].GetLost() != 5 {
			t.Errorf("told %+v, want the flows of one batch", lost)
		}
	})
}

// TestLiveBatchesDoNotWaitBehindTheBacklog: a stream that is not acknowledged
// keeps the other from nothing.
func TestLiveBatchesDoNotWaitBehindTheBacklog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue("c", "n1", 7, 1000)
		c := &collector{answer: func(n int, s *fakeStream) error {
			switch n {
			case 1: // takes three, and is gone
				go func() {
					for range 3 {
						<-s.sent
					}
					s.failed <- errors.New("gone")
				}()
			case 2: // the backlog's: takes, and acknowledges nothing
			default:
				go s.acknowledge()
			}
			return nil
		}}
		for range 3 {
			q.put(batchOf(1, 0))
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- newStream(c, q).run(ctx) }()
		time.Sleep(time.Minute)
		for range 5 {
			q.put(batchOf(1, 0))
		}
		synctest.Wait()
		if batches, _, _ := q.waiting(); batches != 3 || q.entries[0].batch.Key.Sequence != 1 {
			t.Errorf("%d batches wait, want the three of the backlog", batches)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// What no message can hold is told as a gap, and what comes after it is sent.
func TestABatchThatCannotBeSentIsToldAsAGap(t *testing.T) {
	large := batchOf(1, 0)
	large.Flows[0].Source = &flow.Endpoint{Labels: map[string]string{"a": strings.Repeat("x", maxMessage)}}
	garbled := batchOf(2, 0)
	garbled.Flows[0].Source = &flow.Endpoint{Pod: "web-\xff"}
	for want, b := range map[string]*flow.Batch{"16777216 at most": large, "invalid UTF-8": garbled} {
		synctest.Test(t, func(t *testing.T) {
			q := newQueue("c", "n1", 7, 100)
			var taken []*flowauditv1.Batch
			c := &collector{
				answer: func(_ int, s *fakeStream) error {
					go func() {
						for {
							select {
							case b, more := <-s.sent:
								if !more {
									close(s.acks)
									return
								}
								taken = append(taken, b)
								s.acks <- &flowauditv1.Ack{Key: b.GetKey()}
							case <-s.ctx.Done():
								return
							}
						}
					}()
					return nil
				},
				send: func(b *flowauditv1.Batch) error { _, err := proto.Marshal(b); return err },
			}
			flows := len(b.Flows)
			q.put(b)
			q.put(batchOf(3, 0))
			q.close()
			if err := newStream(c, q).run(t.Context()); err != nil {
				t.Fatal(err)
			}
			var gaps []*flowauditv1.Gap
			got := 0
			for _, b := range taken {
				got += len(b.GetFlows().GetSrc())
				gaps = append(gaps, b.GetGaps()...)
			}
			if got != 3 || len(gaps) != 1 || gaps[0].GetLost() != uint64(flows) || !strings.Contains(gaps[0].GetDetail(), want) {
				t.Errorf("%d flows and gaps %v came; want the 3 of the other batch, and a gap of %d that says %q", got, gaps, flows, want)
			}
		})
	}
}

// TestACollectorThatEndsAStreamIsNotAway: it does so now and then. It is away
// once no stream opens, which is said once.
func TestACollectorThatEndsAStreamIsNotAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &collector{answer: func(n int, s *fakeStream) error {
			if n > 2 {
				return errors.New("connection refused")
			}
			time.AfterFunc(time.Hour, func() { close(s.acks) })
			return nil
		}}
		var said strings.Builder
		s := newStream(c, newQueue("c", "n1", 7, 100))
		s.log = slog.New(slog.NewTextHandler(&said, nil))
		ctx, stop := context.WithTimeout(t.Context(), 90*time.Minute)
		defer stop()
		if err := s.run(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if strings.Contains(said.String(), "WARN") {
			t.Errorf("after one stream has ended: %s", said.String())
		}
		ctx, stop = context.WithTimeout(t.Context(), time.Hour)
		defer stop()
		c.streams = 2
		if err := s.run(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if n := strings.Count(said.String(), "collector is away"); n != 1 {
			t.Errorf("said %d times that it is away: %s", n, said.String())
		}
	})
}
