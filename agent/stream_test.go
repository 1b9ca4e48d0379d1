package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/flowaudit/flowaudit/flow"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// collector answers streams as a test wants: answer is called with each
// stream's number, from 1.
type collector struct {
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
}

func (c *collector) Report(ctx context.Context, _ ...grpc.CallOption) (grpc.BidiStreamingClient[flowauditv1.Batch, flowauditv1.Ack], error) {
	c.streams++
	s := &fakeStream{ctx: ctx, owner: c, number: c.streams, sent: make(chan *flowauditv1.Batch, 100), acks: make(chan *flowauditv1.Ack, 100)}
	return s, c.answer(c.streams, s)
}

func (s *fakeStream) Send(b *flowauditv1.Batch) error {
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
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
}

// acknowledge answers every batch until the sender closes.
func (s *fakeStream) acknowledge() {
	for b := range s.sent {
		s.acks <- &flowauditv1.Ack{Key: b.GetKey()}
	}
	close(s.acks)
}

func newStream(c *collector, q *queue) *stream {
	return &stream{queue: q, client: c, log: slog.New(slog.DiscardHandler)}
}

func TestStreamSendsUntilAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue("c", "n1", 100)
		began := time.Now()
		c := &collector{answer: func(n int, s *fakeStream) error {
			switch n {
			case 1:
				return errors.New("connection refused")
			case 2: // takes two batches, and is gone before it acknowledges
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
		if batches, _ := q.waiting(); batches != 0 || c.streams != 3 {
			t.Errorf("%d batches wait after %d streams", batches, c.streams)
		}
		if took := time.Since(began); took != minBackoff+2*minBackoff {
			t.Errorf("it tried again after %s, want pauses that double from %s", took, minBackoff)
		}
	})
}

func TestStreamBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue("c", "n1", 100)
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
		if n := len(tries); n < 10 || n > 40 {
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
		q := newQueue("c", "n1", 100)
		c := &collector{answer: func(_ int, s *fakeStream) error {
			go func() {
				for b := range s.sent {
					s.acks <- &flowauditv1.Ack{Key: b.GetKey(), Refused: true, Error: "field key: …"}
				}
				close(s.acks)
			}()
			return nil
		}}
		q.put(batchOf(1, 0))
		q.close()
		if err := newStream(c, q).run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if want := []uint64{1, 2}; !slices.Equal(c.got, want) {
			t.Errorf("sent %v, want it once, and what tells of it", c.got)
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
			q := newQueue("c", "n1", 100)
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
		s := newStream(c, newQueue("c", "n1", 100))
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
