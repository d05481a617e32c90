from sparsemend.terminal import RUN_WIDTH, console


def test_a_log_file_gets_the_asked_width(capsys) -> None:
    console(RUN_WIDTH).print("a " * 60)
    assert [len(line.rstrip()) for line in capsys.readouterr().out.splitlines()] == [99, 19]
