package notify

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	logsv1 "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/protobuf/proto"

	"github.com/flowaudit/flowaudit/collector/alert"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("%s (-update writes it): %s", name, d)
	}
}

// samples are an alert that fires, one that has resolved, and one of coverage.
func samples() map[string]alert.Alert {
	fires := *alert.Sample()
	fires.Summary += ` = "quoted" | \ ]` + "\n"
	bare := alert.Alert{
		ID: "1", Rule: "coverage-lost", Severity: "info", State: alert.Firing, Node: "n1", Summary: "node n1", Detail: "overrun", Started: fires.Started, Since: fires.Since, Last: fires.Last,
		Labels: map[string]string{"alertname": "coverage-lost"},
	}
	return map[string]alert.Alert{"firing": fires, "resolved": resolvedOf(fires), "coverage": bare}
}

func secretFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestBodies(t *testing.T) {
	for _, format := range []string{"json", "slack", "teams", "pagerduty", "ocsf"} {
		w, err := newWebhook(&Spec{URL: "http://x", Format: format, RoutingKeyFile: secretFile(t, "R0UT")})
		if err != nil {
			t.Fatal(err)
		}
		for name, a := range samples() {
			text, err := w.format(&a)
			if err != nil {
				t.Fatal(err)
			}
			var pretty bytes.Buffer
			if err := json.Indent(&pretty, text, "", "  "); err != nil {
				t.Fatalf("%s of %s is no JSON: %v\n%s", format, name, err, text)
			}
			golden(t, format+"-"+name+".json", pretty.Bytes())
		}
	}
}

func TestCEF(t *testing.T) {
	for name, a := range samples() {
		golden(t, "cef-"+name+".txt", []byte(cef(&a)+"\n"))
	}
}

// A receiver checks who has sent it.
func TestWebhooksAreSigned(t *testing.T) {
	type request struct {
		body   string
		header http.Header
	}
	got := make(chan request, 1)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got <- request{string(b), r.Header}
	}))
	defer server.Close()
	w, err := newWebhook(&Spec{
		URL: server.URL + "/hook", SecretFile: secretFile(t, "s3cret"), TokenFile: secretFile(t, "t0ken"), Timeout: alert.Duration(10 * time.Second),
		Headers: map[string]string{"X-Team": "shop"}, Template: `{{.Rule}} {{.From}} {{json .Labels.severity}}`,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Send(t.Context(), []alert.Alert{*alert.Sample()}); err != nil {
		t.Fatal(err)
	}
	r := <-got
	if r.body != `first-denied shop/web "warning"` || r.header.Get("Authorization") != "Bearer t0ken" || r.header.Get("X-Team") != "shop" || r.header.Get("X-Flowaudit-Alert") != alert.Sample().ID {
		t.Errorf("%q %v", r.body, r.header)
	}
	var seconds int64
	signature := r.header.Get(SignatureHeader)
	if _, err := fmt.Sscanf(signature, "t=%d,", &seconds); err != nil || Sign([]byte(r.body), "s3cret", time.Unix(seconds, 0)) != signature || Sign([]byte(r.body), "other", time.Unix(seconds, 0)) == signature {
		t.Errorf("signature %q, %v", signature, err)
	}
}

func TestWhatEndpointsAnswer(t *testing.T) {
	var status int
	header := http.Header{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for k, v := range header {
			w.Header()[k] = v
		}
		w.WriteHeader(status)
		fmt.Fprint(w, "because")
	}))
	defer server.Close()
	w, err := newWebhook(&Spec{URL: server.URL, Timeout: alert.Duration(10 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	send := func() error { return w.Send(t.Context(), []alert.Alert{*alert.Sample()}) }
	for code, want := range map[int]string{200: "<nil>", 204: "<nil>", 400: "notify.refusedError", 500: "*errors.errorString", 404: "*errors.errorString", 302: "*errors.errorString", 429: "notify.laterError"} {
		status = code
		header = http.Header{}
		if code == 429 {
			header.Set("Retry-After", "7")
		}
		if code == 302 {
			header.Set("Location", "http://elsewhere.invalid/")
		}
		err := send()
		if got := fmt.Sprintf("%T", err); got != want && (want != "*errors.errorString" || !strings.Contains(got, "rror")) || err != nil && !strings.Contains(err.Error(), fmt.Sprint(code)) {
			t.Errorf("%d: %s %v, want %s", code, got, err, want)
		}
	}
	server.Close()
	if err := send(); err == nil || strings.Contains(err.Error(), server.URL) {
		t.Errorf("%v tells the URL, which may be a secret", err)
	}
}

func TestSyslogOverUDP(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s, err := newSyslog(&Spec{URL: "udp://" + conn.LocalAddr().String(), Timeout: alert.Duration(5 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	s.hostname = "collector-0"
	for _, name := range []string{"firing", "resolved", "coverage"} {
		a := samples()[name]
		if err := s.Send(t.Context(), []alert.Alert{a}); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 65536)
		n, _, err := conn.ReadFrom(b)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "syslog-"+name+".txt", append(bytes.ReplaceAll(b[:n], []byte(fmt.Sprintf(" flowaudit %d ", os.Getpid())), []byte(" flowaudit PID ")), '\n'))
	}
}

// Streams count octets.
func TestSyslogOverTLS(t *testing.T) {
	server := httptest.NewUnstartedServer(nil)
	server.StartTLS()
	certificate := server.TLS.Certificates[0]
	authority := secretFile(t, string(pemOf(server.Certificate().Raw)))
	server.Close()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	got := make(chan []byte, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		b, _ := io.ReadAll(conn)
		got <- b
	}()
	s, err := newSyslog(&Spec{URL: "tls://" + listener.Addr().String(), CAFile: authority, Format: "cef", Facility: "auth", Timeout: alert.Duration(10 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	a, b := samples()["firing"], samples()["coverage"]
	if err := s.Send(t.Context(), []alert.Alert{a, b}); err != nil {
		t.Fatal(err)
	}
	text := <-got
	for _, want := range []string{"<36>1 ", "<38>1 "} { // auth is 4
		var length int
		if _, err := fmt.Sscanf(string(text), "%d ", &length); err != nil {
			t.Fatal(err)
		}
		_, rest, _ := bytes.Cut(text, []byte(" "))
		message := rest[:length]
		text = rest[length:]
		if !bytes.HasPrefix(message, []byte(want)) || !bytes.Contains(message, []byte("] CEF:0|flowaudit|")) || bytes.Contains(message, []byte("\n")) {
			t.Errorf("%q, want %s", message, want)
		}
	}
	if len(text) > 0 {
		t.Errorf("%q is left", text)
	}
}

func TestOTLP(t *testing.T) {
	got := make(chan *logsv1.LogsData, 1)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		var data logsv1.LogsData
		if err := proto.Unmarshal(b, &data); err != nil || r.Header.Get("Content-Type") != "application/x-protobuf" {
			t.Errorf("%v, %s", err, r.Header.Get("Content-Type"))
		}
		got <- &data
	}))
	defer server.Close()
	o, err := newOTLP(&Spec{URL: server.URL + "/v1/logs", Timeout: alert.Duration(10 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Send(context.Background(), []alert.Alert{*alert.Sample(), samples()["coverage"]}); err != nil {
		t.Fatal(err)
	}
	records := (<-got).GetResourceLogs()[0].GetScopeLogs()[0].GetLogRecords()
	if len(records) != 2 || records[0].GetSeverityNumber() != logsv1.SeverityNumber_SEVERITY_NUMBER_WARN || records[0].GetBody().GetStringValue() != alert.Sample().Summary {
		t.Fatalf("%v", records)
	}
	attributes := make(map[string]string)
	for _, a := range records[0].GetAttributes() {
		attributes[a.GetKey()] = a.GetValue().GetStringValue()
	}
	for k, want := range map[string]string{"flowaudit.alert.rule": "first-denied", "source.address": "10.1.0.1", "flowaudit.destination": "shop/db", "k8s.node.name": "n2"} {
		if attributes[k] != want {
			t.Errorf("%s is %q, want %q", k, attributes[k], want)
		}
	}
}

func pemOf(certificate []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})
}
