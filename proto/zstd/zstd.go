// Package zstd compresses gRPC messages with zstd.
package zstd

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/grpc/encoding"
)

// Name is the value of grpc-encoding, for grpc.UseCompressor.
const Name = "zstd"

// maxWindow bounds the memory of one decoder, so that a small hostile message
// cannot take the collector's; it is what every encoder may ask for. What a
// message unfolds to, gRPC's own limit bounds.
const maxWindow = 8 << 20

// Register makes the compressor known to gRPC, for the whole process. Call it
// from main, before the first connection.
func Register() { encoding.RegisterCompressor(&compressor{}) }

type compressor struct {
	writers, readers sync.Pool
}

func (c *compressor) Name() string { return Name }

func (c *compressor) Compress(w io.Writer) (io.WriteCloser, error) {
	if pw, ok := c.writers.Get().(*writer); ok {
		pw.Reset(w)
		return pw, nil
	}
	enc, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(256<<10))
	if err != nil {
		return nil, fmt.Errorf("create zstd encoder: %w", err)
	}
	return &writer{Encoder: enc, pool: &c.writers}, nil
}

func (c *compressor) Decompress(r io.Reader) (io.Reader, error) {
	if pr, ok := c.readers.Get().(*reader); ok {
		if err := pr.Reset(r); err != nil {
			return nil, fmt.Errorf("reset zstd decoder: %w", err)
		}
		return pr, nil
	}
	dec, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, fmt.Errorf("create zstd decoder: %w", err)
	}
	return &reader{Decoder: dec, pool: &c.readers}, nil
}

type writer struct {
	*zstd.Encoder
	pool *sync.Pool
}

func (w *writer) Close() error {
	defer w.pool.Put(w)
	return w.Encoder.Close()
}

type reader struct {
	*zstd.Decoder
	pool *sync.Pool
}

// Read gives the decoder back at the end of its message.
func (r *reader) Read(p []byte) (int, error) {
	n, err := r.Decoder.Read(p)
	if errors.Is(err, io.EOF) {
		r.pool.Put(r)
	}
	return n, err
}
