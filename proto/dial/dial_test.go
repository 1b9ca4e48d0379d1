package dial

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// TestFlags: any TLS flag turns TLS on.
func TestFlags(t *testing.T) {
	for _, test := range []struct {
		args  []string
		proto string // of the credentials
		want  string // of the error
	}{
		{nil, "insecure", ""},
		{[]string{"--tls"}, "tls", ""},
		{[]string{"--tls-server-name", "collector"}, "tls", ""},
		{[]string{"--tls-ca", "none.crt"}, "", "read certificate authorities: open none.crt"},
		{[]string{"--tls-ca", "EMPTY"}, "", "no certificate in "},
		{[]string{"--tls-cert", "a.crt"}, "", "--tls-cert and --tls-key belong together"},
		{[]string{"--tls-key", "a.key"}, "", "--tls-cert and --tls-key belong together"},
		{[]string{"--tls-cert", "none.crt", "--tls-key", "none.key"}, "", "read certificate: open none.crt"},
		{[]string{"--token-file", "none"}, "insecure", ""},
	} {
		empty := filepath.Join(t.TempDir(), "empty.pem")
		if err := os.WriteFile(empty, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		for i := range test.args {
			test.args[i] = strings.Replace(test.args[i], "EMPTY", empty, 1)
		}
		var o Options
		fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
		o.Flags(fs)
		o.TokenFlag(fs)
		if err := fs.Parse(test.args); err != nil {
			t.Fatal(err)
		}
		o.Address = "127.0.0.1:1"
		conn, err := o.Conn()
		if test.want != "" {
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v: %v; want %q", test.args, err, test.want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%v: %v", test.args, err)
			continue
		}
		conn.Close()
		creds, err := o.credentials()
		if err != nil || creds.Info().SecurityProtocol != test.proto {
			t.Errorf("%v: %s, %v; want %s", test.args, creds.Info().SecurityProtocol, err, test.proto)
		}
	}
}

// TestATokenIsNotSentInTheClear: but to this machine.
func TestATokenIsNotSentInTheClear(t *testing.T) {
	for address, refused := range map[string]bool{
		"127.0.0.1:1": false, "localhost:1": false, "[::1]:1": false, "unix:/run/c.sock": false, "collector:4245": true, "10.0.0.1:1": true,
	} {
		conn, err := Options{Address: address, TokenFile: "token"}.Conn()
		if refused != (err != nil && strings.Contains(err.Error(), "--token-file needs TLS")) {
			t.Errorf("%s: %v", address, err)
		}
		if err == nil {
			conn.Close()
		}
		conn, err = Options{Address: address, TokenFile: "token", TLS: true}.Conn()
		if err != nil {
			t.Errorf("%s with TLS: %v", address, err)
			continue
		}
		conn.Close()
	}
}

// TestTheTokenIsReadForEachCall: it is renewed while connections last.
func TestTheTokenIsReadForEachCall(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	for text, want := range map[string]string{"one\n": "Bearer one", "two": "Bearer two", " \n": ""} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := token{file: file}.GetRequestMetadata(t.Context())
		if got["authorization"] != want || (err != nil) != (want == "") {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	if _, err := (token{file: "none"}).GetRequestMetadata(t.Context()); err == nil {
		t.Error("a file that is not there is taken")
	}
}
