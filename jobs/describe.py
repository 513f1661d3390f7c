"""``ovss describe``: let a language model write the sentences that settle ambiguous regions."""

import sys

from jobs.arguments import START, load_vocabulary, make_parser, take_fields, vocabulary_flag
from jobs.flags import flags_of
from jobs.parser import CommandParser
from jobs.reporting import FAILED, Arguments, reported
from ovss_core.errors import ConfigError
from pipelines.describe.options import DescribeOptions


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    return make_parser(
        "describe",
        "--vocabulary WORDS --endpoint ADDRESS --model NAME --output FILE [flags]",
        "Let a language model write sentences for every class of a vocabulary, for --descriptions.\n\n"
        "  ovss describe --vocabulary words.txt --endpoint http://localhost:8000/v1 --model NAME --output words.json\n\n"
        "The same command goes on where an earlier one stopped.",
        [vocabulary_flag(), *flags_of(DescribeOptions, START)],
    )


@reported
def main(arguments: Arguments = None) -> int:
    """Write the descriptions, tell what they cost, and return the exit status: 1 where a class got none."""
    given = build_parser().parse_args(arguments)
    if not given.vocabulary:
        raise ConfigError("give --vocabulary (words by commas, a file, or a shipped name)")
    vocabulary, options = load_vocabulary(given.vocabulary), take_fields(given, DescribeOptions)
    from pipelines.describe.writer import write_descriptions  # brings the client, which help does not need

    done = write_descriptions(
        vocabulary, options, lambda line: print(f"ovss: {line}", file=sys.stderr, flush=True)
    )
    for name, fault in done.missing.items():
        print(f"no sentences for {name!r}: the last answer {fault}")
    for finding in done.findings:
        print(f"to be read again: {finding}")
    used = done.tokens
    print(
        f"{len(done.sentences):,} classes described in {options.output}; {used['prompt']:,} prompt and "
        f"{used['completion']:,} completion tokens in all"
    )
    return FAILED if done.missing else 0


if __name__ == "__main__":
    raise SystemExit(main())
