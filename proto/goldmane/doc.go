// Package goldmane is what Calico's Felix sends to a flow collector.
package goldmane
