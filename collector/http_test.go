package collector

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

func TestQuestionsOverHTTP(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	address := make(chan net.Addr, 1)
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Options{
			Listen: ListenOptions{Address: "unix:" + filepath.Join(t.TempDir(), "c"), HTTP: "127.0.0.1:0"}, Store: &memory{}, Readers: ReaderOptions{Proofs: []Proof{ProofNone}},
			Log: slog.New(slog.DiscardHandler), ListeningHTTP: func(a net.Addr) { address <- a },
		})
	}()
	base := "http://" + (<-address).String()
	for path, want := range map[string]string{"/v1/status": `"store":"memory"`, "/v1/list": `"name":"denied-by-source"`, "/openapi.json": `"/v1/select"`} {
		res, err := http.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		if closing := res.Body.Close(); err != nil || closing != nil || res.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
			t.Errorf("%s: %d, %v: %.200s", path, res.StatusCode, err, body)
		}
	}
	// A follower does not keep the collector from ending.
	res, err := http.Post(base+"/v1/observe", "application/json", bytes.NewBufferString(`{"follow": true}`))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestHTTPWhereItCannotListen(t *testing.T) {
	err := Run(t.Context(), Options{
		Listen: ListenOptions{Address: "unix:" + filepath.Join(t.TempDir(), "c"), HTTP: "127.0.0.1:none"}, Store: &memory{}, Log: slog.New(slog.DiscardHandler),
	})
	if err == nil || !strings.Contains(err.Error(), "listen on 127.0.0.1:none") {
		t.Errorf("error %v", err)
	}
	for address, want := range map[string]string{"unix:x": "want host:port", "0.0.0.0:80": "without TLS", "127.0.0.1:80": ""} {
		o := Options{Listen: ListenOptions{Address: "unix:x", HTTP: address}}
		if err := o.Validate(); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", address, err, want)
		}
	}
}
