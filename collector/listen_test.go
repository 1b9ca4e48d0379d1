package collector

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flowaudit/flowaudit/proto/dial"
	flowauditv1 "github.com/flowaudit/flowaudit/proto/flowaudit/v1"
)

// TestListenOptions: nobody gives flows away in the clear by mistake.
func TestListenOptions(t *testing.T) {
	for _, test := range []struct {
		options ListenOptions
		want    string // of the error; empty if it is none
	}{
		{ListenOptions{Address: "127.0.0.1:4245"}, ""},
		{ListenOptions{Address: "127.8.9.10:4245"}, ""},
		{ListenOptions{Address: "[::1]:4245"}, ""},
		{ListenOptions{Address: "localhost:4245"}, ""},
		{ListenOptions{Address: "unix:/run/flowaudit.sock"}, ""},
		{ListenOptions{Address: ":4245"}, "say --insecure"},
		{ListenOptions{Address: "0.0.0.0:4245"}, "say --insecure"},
		{ListenOptions{Address: "[::]:4245"}, "say --insecure"},
		{ListenOptions{Address: "10.0.0.1:4245"}, "listen on 10.0.0.1:4245: without TLS"},
		{ListenOptions{Address: "collector.example:4245"}, "say --insecure"},
		{ListenOptions{Address: ":4245", Insecure: true}, ""},
		{ListenOptions{Address: ":4245", Cert: "c", Key: "k"}, ""},
		{ListenOptions{Address: ":4245", Cert: "c", Key: "k", ClientCA: "a"}, ""},
		{ListenOptions{Address: ":4245", Cert: "c"}, "--tls-cert and --tls-key belong together"},
		{ListenOptions{Address: ":4245", Key: "k"}, "--tls-cert and --tls-key belong together"},
		{ListenOptions{Address: "127.0.0.1:4245", ClientCA: "a"}, "--tls-client-ca needs --tls-cert"},
		{ListenOptions{Address: "unix:"}, "names no socket"},
		{ListenOptions{Address: "unix://"}, "names no socket"},
		{ListenOptions{Address: "4245"}, "missing port"},
		{ListenOptions{}, "missing port"},
	} {
		o := Options{Listen: test.options}
		err := o.Validate()
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%+v: %v; want %q", test.options, err, test.want)
		}
	}
	if err := (&Options{Listen: ListenOptions{Address: "unix:x"}, Retain: Retain{Flows: -1}}).Validate(); err == nil || !strings.Contains(err.Error(), "--retain") {
		t.Errorf("a negative time to keep flows: %v", err)
	}
}

func TestTheSocketIsForItsOwnerOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	for _, address := range []string{"unix:" + path, "unix://" + path} {
		l, err := (&ListenOptions{Address: address}).listen()
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode() != os.ModeSocket|0o600 {
			t.Errorf("%s: %v, %v", address, info.Mode(), err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAStaleSocketIsReplacedAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	stale, used, file := filepath.Join(dir, "stale"), filepath.Join(dir, "used"), filepath.Join(dir, "file")
	abandoned, err := net.Listen("unix", stale)
	if err != nil {
		t.Fatal(err)
	}
	abandoned.(*net.UnixListener).SetUnlinkOnClose(false)
	abandoned.Close()
	other, err := net.Listen("unix", used)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ path, want string }{
		{stale, ""},
		{used, "another collector listens there"},
		{file, "address already in use"},
		{filepath.Join(dir, "none", "x"), "no such file"},
	} {
		l, err := (&ListenOptions{Address: "unix:" + test.path}).listen()
		if err == nil {
			l.Close()
		}
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v; want %q", test.path, err, test.want)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "mine" {
		t.Errorf("the file is now %q, %v", b, err)
	}
	if c, err := net.Dial("unix", used); err != nil {
		t.Errorf("the other's socket is gone: %v", err)
	} else {
		c.Close()
	}
}

// authority signs certificates for a test.
type authority struct {
	dir, ca string // ca is its PEM file
	cert    *x509.Certificate
	key     *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir()}
	template := &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, Subject: pkix.Name{CommonName: name}}
	a.ca, _ = a.issue(t, template, name)
	return a
}

// issue writes a certificate and its key; the first one is the authority's own.
func (a *authority) issue(t *testing.T, c *x509.Certificate, name string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, private
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &private.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert == nil {
		a.key = private
		if a.cert, err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
	}
	keyBytes, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return a.write(t, name+".crt", "CERTIFICATE", der), a.write(t, name+".key", "PRIVATE KEY", keyBytes)
}

func (a *authority) write(t *testing.T, name, kind string, der []byte) string {
	t.Helper()
	path := filepath.Join(a.dir, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (a *authority) server(t *testing.T) (cert, key string) {
	t.Helper()
	return a.issue(t, &x509.Certificate{
		DNSNames: []string{"collector.flowaudit"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, "server")
}

func (a *authority) client(t *testing.T) (cert, key string) {
	t.Helper()
	return a.issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "agent"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, "client")
}

// run runs a collector as its program does, and returns its address.
func run(t *testing.T, o Options) net.Addr {
	t.Helper()
	o.Log = slog.New(slog.DiscardHandler)
	if o.Listen.ClientCA == "" && len(o.Readers.Proofs) == 0 {
		o.Readers.Proofs = []Proof{ProofNone}
	}
	listening := make(chan net.Addr, 1)
	o.Listening = func(a net.Addr) { listening <- a }
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, o) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case a := <-listening:
		return a
	case err := <-done:
		done <- nil
		t.Fatal(err)
	}
	return nil
}

// ask is a call over a connection of its own.
func ask(t *testing.T, o dial.Options) error {
	t.Helper()
	conn, err := o.Conn()
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = flowauditv1.NewQueryClient(conn).Status(t.Context(), &flowauditv1.StatusRequest{})
	return err
}

func TestTLS(t *testing.T) {
	ours, foreign := newAuthority(t, "ours"), newAuthority(t, "foreign")
	serverCert, serverKey := ours.server(t)
	cert, key := ours.client(t)
	foreignCert, foreignKey := foreign.client(t)
	mutual := run(t, Options{Store: &memory{}, Listen: ListenOptions{Address: "127.0.0.1:0", Cert: serverCert, Key: serverKey, ClientCA: ours.ca}}).String()
	oneSided := run(t, Options{Store: &memory{}, Listen: ListenOptions{Address: "127.0.0.1:0", Cert: serverCert, Key: serverKey}}).String()
	plain := run(t, Options{Store: &memory{}, Listen: ListenOptions{Address: "127.0.0.1:0"}}).String()
	// The server hangs up: what the client still reads of the reason is chance.
	const refused = "code = Unavailable"
	for _, test := range []struct {
		name    string
		options dial.Options
		want    string // of the error; empty if the answer comes
	}{
		{"mutual", dial.Options{Address: mutual, CA: ours.ca, Cert: cert, Key: key}, ""},
		{"mutual, the certificate's other name", dial.Options{Address: mutual, CA: ours.ca, Cert: cert, Key: key, ServerName: "collector.flowaudit"}, ""},
		{"mutual, without a certificate", dial.Options{Address: mutual, CA: ours.ca}, refused},
		{"mutual, with a foreign certificate", dial.Options{Address: mutual, CA: ours.ca, Cert: foreignCert, Key: foreignKey}, refused},
		{"mutual, in the clear", dial.Options{Address: mutual}, refused},
		{"one-sided", dial.Options{Address: oneSided, CA: ours.ca}, ""},
		{"one-sided, the system's authorities", dial.Options{Address: oneSided, TLS: true}, "certificate signed by unknown authority"},
		{"one-sided, foreign authorities", dial.Options{Address: oneSided, CA: foreign.ca}, "certificate signed by unknown authority"},
		{"one-sided, another name", dial.Options{Address: oneSided, CA: ours.ca, ServerName: "elsewhere"}, "not elsewhere"},
		{"plain", dial.Options{Address: plain}, ""},
		{"plain, but TLS is asked for", dial.Options{Address: plain, CA: ours.ca}, "does not look like a TLS handshake"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := ask(t, test.options)
			if test.want == "" && err != nil || test.want != "" && (status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("%v; want %q", err, test.want)
			}
		})
	}
}

// TestWhatCannotBeServedWith: the store is closed, and the error names the file.
func TestWhatCannotBeServedWith(t *testing.T) {
	a := newAuthority(t, "ours")
	cert, key := a.server(t)
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name    string
		options Options
		want    string
	}{
		{"no certificate", Options{Listen: ListenOptions{Address: "127.0.0.1:0", Cert: "none.crt", Key: key}}, "none.crt"},
		{"another's key", Options{Listen: ListenOptions{Address: "127.0.0.1:0", Cert: cert, Key: cert}}, "read certificate"},
		{"no authorities' file", Options{Listen: ListenOptions{Address: "127.0.0.1:0", Cert: cert, Key: key, ClientCA: "none.crt"}}, "none.crt"},
		{"no authorities in it", Options{Listen: ListenOptions{Address: "127.0.0.1:0", Cert: cert, Key: key, ClientCA: empty}}, "no certificate in " + empty},
		{"no such address", Options{Listen: ListenOptions{Address: "192.0.2.1:0", Insecure: true}}, "listen on 192.0.2.1:0"},
		{"no manifests", Options{Listen: ListenOptions{Address: "127.0.0.1:0"}, Manifests: "none"}, "none"},
	} {
		store := &memory{}
		test.options.Store, test.options.Log = store, slog.New(slog.DiscardHandler)
		if err := Run(t.Context(), test.options); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v; want %q", test.name, err, test.want)
		}
		if !store.closed {
			t.Errorf("%s: the store is left open", test.name)
		}
	}
}
