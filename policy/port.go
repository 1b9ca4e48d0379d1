package policy

import (
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/flowaudit/flowaudit/flow"
)

// port is one item of ports: a range of numbers, or a name.
type port struct {
	field       string
	protocol    flow.Protocol
	invalid     bool // perhaps matches anything
	name        string
	first, last uint16 // 0 and 0: every port
}

func (c *compiler) port(from *networkingv1.NetworkPolicyPort, at *field.Path) port {
	before := len(c.policy.problems)
	p := port{field: at.String(), protocol: c.protocol(from.Protocol, at.Child("protocol"))}
	switch {
	case from.Port == nil:
		if from.EndPort != nil {
			c.problem(at.Child("endPort"), "is given without port: want the first port of the range too")
		}
	case from.Port.Type == intstr.String:
		for _, message := range validation.IsValidPortName(from.Port.StrVal) {
			c.problem(at.Child("port"), "%q is no port name: %s", from.Port.StrVal, message)
		}
		if from.EndPort != nil {
			c.problem(at.Child("endPort"), "is given for a named port: a range needs numbers")
		}
		p.name = from.Port.StrVal
	default:
		p.first, p.last = c.numbers(from.Port.IntVal, from.EndPort, at)
	}
	p.invalid = len(c.policy.problems) > before
	return p
}

func (c *compiler) protocol(from *corev1.Protocol, at *field.Path) flow.Protocol {
	if from == nil {
		return flow.TCP
	}
	switch *from {
	case corev1.ProtocolTCP:
		return flow.TCP
	case corev1.ProtocolUDP:
		return flow.UDP
	case corev1.ProtocolSCTP:
		return flow.SCTP
	}
	c.problem(at, "%q is no protocol of NetworkPolicy: want TCP, UDP or SCTP", *from)
	return 0
}

func (c *compiler) numbers(number int32, end *int32, at *field.Path) (first, last uint16) {
	if number < 1 || number > 65535 {
		c.problem(at.Child("port"), "%d is no port: want 1 to 65535", number)
	}
	if end == nil {
		return uint16(number), uint16(number)
	}
	switch {
	case *end < 1 || *end > 65535:
		c.problem(at.Child("endPort"), "%d is no port: want 1 to 65535", *end)
	case *end < number:
		c.problem(at.Child("endPort"), "%d is below port %d", *end, number)
	}
	return uint16(number), uint16(*end)
}

// match reports whether the item allows the question's protocol and port.
func (p *port) match(q *question) answer {
	switch {
	case p.invalid:
		return doubt(ReasonInvalid)
	case p.protocol != q.protocol:
		return answer{}
	case p.name != "":
		return q.named(p)
	case p.first == 0:
		return answer{is: yes}
	case q.port == 0:
		return doubt(ReasonPort)
	}
	return answer{is: isTrue(p.first <= q.port && q.port <= p.last)}
}

// named resolves a port name at the destination.
func (q *question) named(p *port) answer {
	switch q.dst.kind() {
	case flow.EndpointPod:
	case flow.EndpointNode, flow.EndpointOutside:
		return answer{} // only pods name their ports
	default:
		return doubt(ReasonEnd)
	}
	if q.dst.Class.portsUnknown {
		return doubt(ReasonPort)
	}
	for _, n := range q.dst.Class.ports {
		if n.Name != p.name || n.Protocol != p.protocol {
			continue
		}
		if q.port == 0 {
			return doubt(ReasonPort)
		}
		if n.Port == q.port {
			return answer{is: yes}
		}
	}
	return answer{}
}
