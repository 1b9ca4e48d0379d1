package zstd

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func compress(t testing.TB, c *compressor, text []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := c.Compress(&out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestRoundTrip: again and again, because coders are used again.
func TestRoundTrip(t *testing.T) {
	c := &compressor{}
	random := make([]byte, 1<<20)
	rand.Read(random)
	texts := [][]byte{nil, []byte("a"), bytes.Repeat([]byte("10.0.0.1 "), 1<<17), random}
	var group errgroup.Group
	for range 4 {
		group.Go(func() error {
			for range 5 {
				for _, text := range texts {
					r, err := c.Decompress(bytes.NewReader(compress(t, c, text)))
					if err != nil {
						return err
					}
					if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, text) {
						t.Errorf("%d bytes came back as %d, %v", len(text), len(got), err)
					}
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if n := len(compress(t, c, texts[2])); n > len(texts[2])/100 {
		t.Errorf("%d bytes of repetitions became %d", len(texts[2]), n)
	}
}

// TestForeignBytes: they give an error, and the next message is read all the same.
func TestForeignBytes(t *testing.T) {
	c := &compressor{}
	good := compress(t, c, []byte(strings.Repeat("flow", 1000)))
	spoilt := bytes.Clone(good)
	spoilt[len(spoilt)-1] ^= 0xff // its checksum
	for name, b := range map[string][]byte{"no zstd": []byte("plain text"), "cut off": good[:len(good)/2], "spoilt": spoilt} {
		r, err := c.Decompress(bytes.NewReader(b))
		if err == nil {
			_, err = io.ReadAll(r)
		}
		if err == nil {
			t.Errorf("%s: no error", name)
		}
		r, err = c.Decompress(bytes.NewReader(good))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || len(got) != 4000 {
			t.Errorf("after %s: %d bytes, %v", name, len(got), err)
		}
	}
}

// TestAGreedyWindowIsRefused: a few bytes must not take much memory.
func TestAGreedyWindowIsRefused(t *testing.T) {
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, zstd.WithWindowSize(2*maxWindow))
	if err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, 1<<20)
	for range 2*maxWindow>>20 + 1 {
		if _, err := w.Write(zeros); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := (&compressor{}).Decompress(&b)
	if err == nil {
		_, err = io.Copy(io.Discard, r)
	}
	if err == nil {
		t.Error("no error")
	}
}

// echo answers what it is asked, whatever the method.
func echo(_ any, stream grpc.ServerStream) error {
	var m wrapperspb.BytesValue
	if err := stream.RecvMsg(&m); err != nil {
		return err
	}
	return stream.SendMsg(&m)
}

// TestOverGRPC: once registered, calls use it, and what a message unfolds to is
// bounded by the receiver.
func TestOverGRPC(t *testing.T) {
	Register()
	if encoding.GetCompressor(Name) == nil {
		t.Fatal("gRPC does not know it")
	}
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer(grpc.UnknownServiceHandler(echo), grpc.MaxRecvMsgSize(1<<20))
	go func() { _ = server.Serve(listener) }()
	defer server.Stop()
	conn, err := grpc.NewClient("passthrough:server", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ask := func(n int) (int, error) {
		var got wrapperspb.BytesValue
		err := conn.Invoke(t.Context(), "/x.Y/Z", &wrapperspb.BytesValue{Value: make([]byte, n)}, &got, grpc.UseCompressor(Name))
		return len(got.GetValue()), err
	}
	for _, n := range []int{0, 100, 1 << 19} {
		if got, err := ask(n); err != nil || got != n {
			t.Errorf("%d bytes came back as %d, %v", n, got, err)
		}
	}
	if _, err := ask(2 << 20); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a message that unfolds beyond the bound: %v", err)
	}
}
