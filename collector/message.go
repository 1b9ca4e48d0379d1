package collector

import (
	"context"
	"fmt"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// codec reads batches as the bytes that came. Decoded, they can need twenty
// times as much: that is done when there is room for it.
type codec struct{ encoding.CodecV2 }

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if b, ok := v.(*[]byte); ok {
		*b = data.Materialize()
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}

const (
	// agentBytes and allBytes bound the messages of one agent and of all that
	// are being decoded, named and stored. One that is larger takes turns with
	// all others of its agent.
	agentBytes = 4 << 20
	allBytes   = 16 << 20
	// maxFlows are more than any agent sends in one batch.
	maxFlows = 1 << 14
	// maxRemarks bounds what a batch says beside its flows, in bytes: some of it is remembered.
	maxRemarks = 128 << 10
)

// room is what messages take until they are stored.
type room struct{ own, all *semaphore.Weighted }

// place is a message's in a room.
type place struct {
	room
	bytes int64
}

// take waits until there is room for a message.
func (r room) take(ctx context.Context, message []byte) (*place, error) {
	p := &place{r, int64(min(len(message), agentBytes))}
	if err := r.own.Acquire(ctx, p.bytes); err != nil {
		return nil, context.Cause(ctx)
	}
	if err := r.all.Acquire(ctx, p.bytes); err != nil {
		r.own.Release(p.bytes)
		return nil, context.Cause(ctx)
	}
	return p, nil
}

func (p *place) leave() {
	p.all.Release(p.bytes)
	p.own.Release(p.bytes)
}

// aside lets the other agents' messages pass while wait waits.
func (p *place) aside(ctx context.Context, wait func() error) error {
	p.all.Release(p.bytes)
	err := wait()
	if again := p.all.Acquire(context.WithoutCancel(ctx), p.bytes); again != nil {
		return again // cannot be
	}
	return err
}

// countFlows counts a message's flows without decoding them. What is broken it
// leaves to the decoder.
func countFlows(message []byte) (n int) {
	const flows, src = 6, 11 // of Batch, and of Flows
	fields(message, flows, func(value []byte) {
		fields(value, src, func(column []byte) {
			for _, c := range column {
				if c < 0x80 { // the last byte of a number
					n++
				}
			}
		})
	})
	return n
}

// fields calls found with each value of a field that is made of bytes.
func fields(message []byte, field protowire.Number, found func([]byte)) {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return
		}
		message = message[n:]
		if number == field && kind == protowire.BytesType {
			value, n := protowire.ConsumeBytes(message)
			if n < 0 {
				return
			}
			found(value)
			message = message[n:]
			continue
		}
		if n = protowire.ConsumeFieldValue(number, kind, message); n < 0 {
			return
		}
		message = message[n:]
	}
}

// read decodes a message. Of one that no agent can have made it may give the key
// only, and says why.
func read(message []byte) (b *flowauditv1.Batch, excess, err error) {
	b = new(flowauditv1.Batch)
	n := countFlows(message)
	if n > maxFlows {
		const key = 1
		fields(message, key, func(value []byte) {
			b.Key = new(flowauditv1.BatchKey)
			err = proto.Unmarshal(value, b.Key)
		})
		return b, tooMany(n), err
	}
	if err := proto.Unmarshal(message, b); err != nil {
		return b, nil, err
	}
	if n = len(b.GetFlows().GetSrc()); n > maxFlows { // written in another way
		return b, tooMany(n), nil
	}
	if n = proto.Size(b) - proto.Size(b.GetFlows()); n > maxRemarks {
		return b, fmt.Errorf("it says %d bytes beside its flows, more than %d", n, maxRemarks), nil
	}
	return b, nil, nil
}

func tooMany(flows int) error { return fmt.Errorf("it has %d flows, more than %d", flows, maxFlows) }
