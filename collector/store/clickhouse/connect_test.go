package clickhouse

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flowaudit/flowaudit/collector/store/clickhouse/clickhousetest"
)

// TestWhoComesIn: a server with TLS and one without, and what each says to
// those whom it does not let in.
func TestWhoComesIn(t *testing.T) {
	if shared.old == nil {
		missing(t)
	}
	dir := t.TempDir()
	ca, cert, key, err := clickhousetest.Certificates(dir)
	if err != nil {
		t.Fatal(err)
	}
	secure, err := clickhousetest.Start(clickhousetest.Options{Dir: dir, Cert: cert, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	defer secure.Kill()
	notPEM := filepath.Join(dir, "not.pem")
	if err := os.WriteFile(notPEM, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	const user = clickhousetest.User + ":" + clickhousetest.Password
	for _, test := range []struct {
		name, url string
		c         Credentials
		want      string // of the error; empty for none
	}{
		{"its authority is known", "clickhouse://" + user + "@" + secure.Address() + "/a?secure=true", Credentials{CA: ca}, ""},
		{"a CA is enough", "clickhouse://" + user + "@" + secure.Address() + "/a", Credentials{CA: ca}, ""},
		{"by another name", "clickhouse://" + user + "@" + secure.Address() + "/a", Credentials{CA: ca, ServerName: "clickhouse"}, ""},
		{"the password by itself", "clickhouse://" + clickhousetest.User + "@" + secure.Address() + "/a", Credentials{CA: ca, Password: clickhousetest.Password}, ""},
		{"not verified", "clickhouse://" + user + "@" + secure.Address() + "/a?secure=true&skip_verify=true", Credentials{}, ""},
		{"a name that it has not", "clickhouse://" + user + "@" + secure.Address() + "/a", Credentials{CA: ca, ServerName: "other"}, `certificate is valid for clickhouse, not other`},
		{"an unknown authority", "clickhouse://" + user + "@" + secure.Address() + "/a?secure=true", Credentials{}, "of an unknown authority: name its own"},
		{"no TLS where it is wanted", "clickhouse://" + user + "@" + secure.Address() + "/a", Credentials{}, "if it wants TLS, add secure=true"},
		{"TLS where there is none", "clickhouse://" + user + "@" + shared.old.Address() + "/a", Credentials{CA: ca}, "does not speak TLS on this port"},
		{"a wrong password", "clickhouse://" + clickhousetest.User + ":wrong@" + shared.old.Address() + "/a", Credentials{}, "check user and password"},
		{"no password", "clickhouse://" + clickhousetest.User + "@" + shared.old.Address() + "/a", Credentials{}, "check user and password"},
		{"an unknown user", "clickhouse://nobody:x@" + shared.old.Address() + "/a", Credentials{}, "check user and password"},
		{"a wrong password beside the URL's", shared.old.URL("a"), Credentials{Password: "wrong"}, "check user and password"},
		{"no database, and no right to make it", "clickhouse://" + clickhousetest.Reader + ":" + clickhousetest.Password + "@" + shared.old.Address() + "/none", Credentials{}, "make database none: this user may not make what is missing"},
		{"no tables, and no right to make them", "clickhouse://" + clickhousetest.Reader + ":" + clickhousetest.Password + "@" + shared.old.Address() + "/default", Credentials{}, "this user may not make what is missing"},
		{"nobody listens", "clickhouse://" + user + "@127.0.0.1:1/a", Credentials{}, "connection refused"},
		{"no such CA", shared.old.URL("a"), Credentials{CA: filepath.Join(dir, "none")}, "read certificate authorities: open"},
		{"a CA that is none", shared.old.URL("a"), Credentials{CA: notPEM}, "holds no certificate in PEM"},
		{"a key that is none", shared.old.URL("a"), Credentials{Cert: cert, Key: notPEM}, "read own certificate"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, err := Open(t.Context(), Options{URL: test.url, Credentials: test.c, Logger: quiet(), Now: now, Slice: time.Hour})
			switch {
			case err == nil && test.want == "":
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			case err == nil || test.want == "" || !strings.Contains(err.Error(), test.want):
				t.Errorf("error %v, want %q", err, test.want)
			case strings.Contains(err.Error(), clickhousetest.Password):
				t.Errorf("the error shows the password: %v", err)
			}
		})
	}
}
