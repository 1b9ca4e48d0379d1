package manual_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/flowaudit/flowaudit/cmd/manual"
)

const help = `Does a thing to C:\dir, or
'quoted', which begins a line.

  indented.as-it-is

Usage:
  thing [flags]

Examples:
  # first
  thing --to unix:/run/x

Flags:
  -h, --help              help for thing
      --to address        where it goes (default "x")
                          and on
      --dry               do not

Use "thing --help" for more.
`

func TestPage(t *testing.T) {
	const want = `.TH THING 8 "" flowaudit
.nh
.ad l
.SH NAME
thing \- does it
.SH DESCRIPTION
Does a thing to C:\edir, or
\&'quoted', which begins a line.
.PP
.nf
  indented.as\-it\-is
.fi
.PP
.SH USAGE
.nf
  thing [flags]
.fi
.SH EXAMPLES
.nf
  # first
  thing \-\-to unix:/run/x
.fi
.SH FLAGS
.TP
\fB\-h, \-\-help\fR
help for thing
.TP
\fB\-\-to\fR \fIaddress\fR
where it goes (default "x")
and on
.TP
\fB\-\-dry\fR
do not
`
	if got := manual.Page("thing", 8, "does it", help); got != want {
		t.Errorf("got\n%s", got)
	}
}

// TestManReadsIt: where man is, it has no complaint.
func TestManReadsIt(t *testing.T) {
	groff, err := exec.LookPath("groff")
	if err != nil {
		t.Log("groff is not here to ask")
		return
	}
	cmd := exec.Command(groff, "-man", "-ww", "-Tutf8")
	cmd.Stdin = strings.NewReader(manual.Page("thing", 8, "does it", help))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.String() != "" || !strings.Contains(string(out), "thing --to unix:/run/x") {
		t.Errorf("%v\n%s\n%s", err, stderr.String(), out)
	}
}
