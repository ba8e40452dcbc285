"Run the campaign, or kinds of it, and keep its table in a record."
import argparse, sys, time
from pathlib import Path

from faults import campaign

from chexmix.core import run_path


def main() -> int:
    parser = argparse.ArgumentParser(prog='faults', description='Faults on purpose.')
    parser.add_argument('kinds', nargs='*', choices=campaign.KINDS, help='(default: all)')
    parser.add_argument('--share', type=float, default=1., help='of the trials (default: 1)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--run', default='tiny', help='a run at preset tiny with both stages trained')
    parser.add_argument('-o', '--out', default='', help='the record, whose other rows stay')
    args = parser.parse_args()
    trained = run_path(args.run)
    failed = False
    for kind in args.kinds or campaign.KINDS:
        begin = time.monotonic()
        for trials in campaign.run(kind, args.share, args.seed, trained):
            seconds, begin = time.monotonic() - begin, time.monotonic()
            print(f'{trials.kind}: {trials.survived} of {trials.tried} survived, {seconds:.0f} s', flush=True)
            for failure in trials.failures[:20]: print(f'   {failure[:300]}', flush=True)
            failed |= bool(trials.failures)
            if args.out: campaign.keep(Path(args.out), trials, args.seed, seconds)
    return int(failed)


if __name__ == '__main__': sys.exit(main())
